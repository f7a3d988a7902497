"""Scores and feature spaces: the embedded ones on drawn scenes, those with weights on tiny random
models of the same classes, against transformers' own forward passes.
"""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from schemas.config import ScoreConfig
from schemas.errors import ConfigError
from stages.scores import EMBEDDED, FEATURES, SCORES, card_of, open_features, open_score
from stages.shapes_world.captions import parse, phrase, sample_spec
from stages.shapes_world.scenes import render, sample_scene
from stages.shapes_world.train_text import build_tokenizer

CPU = torch.device("cpu")
BUCKETS = [(64, 64), (80, 48), (48, 80), (96, 40), (40, 96)]
PROMPTS = ["a red circle", "a big blue ring on black", "a square left of a cross"]


def score(name: str, model: Path | None = None):
    return open_score(ScoreConfig(name=name, model=str(model) if model else None), CPU)


def space(name: str, model: Path | None = None):
    return open_features(ScoreConfig(name=name, model=str(model) if model else None), CPU)


def noise(count: int = 3, height: int = 40, width: int = 56) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, height, width, 3), np.uint8)


# The shapes world


def captioned(size: tuple[int, int], count: int) -> tuple[np.ndarray, list[str]]:
    rng = random.Random(f"scores/{size}")
    specs = [sample_spec(rng) for _ in range(count)]
    pictures = render([sample_scene(spec, *size, rng) for spec in specs])
    return pictures, [phrase(spec, rng) for spec in specs]


def test_attributes_are_all_right_on_real_scenes_and_not_on_others():
    attributes = score("attributes")
    own, other = [], []
    for size in BUCKETS:
        pictures, captions = captioned(size, 30)
        own.append(attributes.judge(pictures, captions))
        other.append(attributes.judge(pictures, captions[1:] + captions[:1]))
    assert own[0].dtype == np.float64 and set(np.concatenate(own + other)) <= {0.0, 1.0}
    assert np.mean(own) >= 0.98 and np.mean(other) < 0.2


def test_layout_ranks_a_scenes_own_caption_above_another():
    layout, attributes = score("layout"), score("attributes")
    own, other = [], []
    for size in BUCKETS:
        pictures, captions = captioned(size, 40)
        shuffled = captions[7:] + captions[:7]
        false = attributes.judge(pictures, shuffled) == 0  # a few are true of the scene by chance
        own.append(layout.judge(pictures, captions)[false])
        other.append(layout.judge(pictures, shuffled)[false])
    own, other = np.concatenate(own), np.concatenate(other)
    assert len(own) > 150 and own.mean() > 0.95 and other.mean() < 0.6
    assert (own > other).mean() > 0.95


SCENE = "a big red circle left of a small blue square on gray"


@pytest.mark.parametrize(
    "changed",
    [
        "a big green circle left of a small blue square on gray",
        "a small red circle left of a small blue square on gray",
        "a big red circle right of a small blue square on gray",
        "a big red circle left of a small blue square on pink",
        "a big red circle on the left on gray",
    ],
)
def test_layout_falls_with_every_changed_attribute(changed):
    pictures = render([sample_scene(parse(SCENE), 64, 64, random.Random(i)) for i in range(12)])
    own = score("layout").judge(pictures, [SCENE] * 12)
    assert (own - score("layout").judge(pictures, [changed] * 12) > 0.07).all()
    assert own.min() > 0.9 and own.max() <= 1


def test_layout_is_graded_by_how_far_an_object_is_from_its_place():
    scene = sample_scene(parse("a small red circle on black"), 96, 40, random.Random(1))
    (thing,) = scene.objects
    pictures = []
    for x in (20, 44, 48, 52, 76):
        placed = type(thing)(**{**vars(thing), "x": float(x), "y": 20.0})
        pictures.append(render([type(scene)(**{**vars(scene), "objects": (placed,)})])[0])
    values = score("layout").judge(np.stack(pictures), ["a red circle on the left"] * 5)
    assert (np.diff(values) < 0).all()
    assert values[0] > 0.95 > 0.7 > values[-1]


def test_layout_of_pictures_without_objects_is_low_and_finite():
    flat = np.full((2, 64, 64, 3), 126, np.uint8)
    values = score("layout").judge(flat, ["a red circle on gray", "a ring and a cross"])
    assert 0 < values[0] < 0.5 and values[1] == 0
    assert np.isfinite(score("layout").judge(noise(2, 64, 64), PROMPTS[:2])).all()


def test_layout_is_not_the_judge():
    """A ring where a disc is due: the judge sees it, colour and layout are right all the same."""
    ring = render([sample_scene(parse("a red ring on gray"), 64, 64, random.Random(0))])
    assert score("attributes").judge(ring, ["a red circle on gray"]) == 0
    assert score("layout").judge(ring, ["a red circle on gray"]) > 0.95


def test_judge_features_are_those_of_the_judge():
    from stages.shapes_world.judge import ShapesJudge
    from stages.teachers.shapes import WEIGHTS

    pictures, _ = captioned((80, 48), 4)
    features = space("judge_features").features(pictures)
    pixels = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1
    expected = ShapesJudge.load(WEIGHTS / "judge.safetensors").features(pixels)
    assert features.shape == (4, space("judge_features").width) and features.dtype == np.float32
    np.testing.assert_allclose(features, expected, rtol=1e-5)


# CLIP and what stands on it


def save_clip(folder: Path) -> Path:
    from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel

    torch.manual_seed(0)
    tokenizer = build_tokenizer()
    tower = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "initializer_range": 0.3,
    }
    text = {
        "vocab_size": len(tokenizer),
        "max_position_embeddings": 16,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    config = CLIPConfig(
        text_config=tower | text,
        vision_config=tower | {"image_size": 32, "patch_size": 8},
        projection_dim=12,
        logit_scale_init_value=3.0,
    )
    CLIPModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    CLIPImageProcessorPil(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def tiny_clip(tmp_path_factory) -> Path:
    return save_clip(tmp_path_factory.mktemp("clip"))


@torch.no_grad()
def by_transformers(folder: Path, pictures: list[Image.Image], prompts: list[str]):
    """The model's own output, processed by CLIPProcessor."""
    from transformers import CLIPImageProcessorPil, CLIPModel, CLIPProcessor, CLIPTokenizer

    processor = CLIPProcessor(
        CLIPImageProcessorPil.from_pretrained(folder), CLIPTokenizer.from_pretrained(folder)
    )
    inputs = processor(text=prompts, images=pictures, padding=True, return_tensors="pt")
    return CLIPModel.from_pretrained(folder).eval()(**inputs)


def as_images(pictures: np.ndarray) -> list[Image.Image]:
    return [Image.fromarray(picture) for picture in pictures]


def test_clip_score_equals_transformers_own(tiny_clip):
    logits = by_transformers(tiny_clip, as_images(noise()), PROMPTS).logits_per_image
    cosines = logits.diagonal().numpy() / np.exp(3.0)
    scores = score("clip_score", tiny_clip).judge(noise(), PROMPTS)
    assert scores.dtype == np.float64 and np.ptp(cosines) > 0.01
    np.testing.assert_allclose(scores, 100 * cosines.clip(0), rtol=1e-4, atol=1e-5)


def test_clip_score_of_the_opposite_is_zero(tiny_clip):
    clip_score = score("clip_score", tiny_clip)
    before = clip_score.judge(noise(), PROMPTS)
    assert (before > 0).any()
    clip_score.clip.model.visual_projection.weight.neg_()
    assert (clip_score.judge(noise(), PROMPTS)[before > 0] == 0).all()


def test_pick_score_equals_transformers_logits(tiny_clip):
    logits = by_transformers(tiny_clip, as_images(noise()), PROMPTS).logits_per_image
    scores = score("pick_score", tiny_clip).judge(noise(), PROMPTS)
    np.testing.assert_allclose(scores, logits.diagonal(), rtol=1e-4)


def test_hps_is_the_cosine_on_whole_pictures_padded_with_black(tiny_clip):
    wide = noise(3, 16, 32)
    padded = np.zeros((3, 32, 32, 3), np.uint8)
    padded[:, 8:24] = wide
    logits = by_transformers(tiny_clip, as_images(padded), PROMPTS).logits_per_image
    scores = score("hps", tiny_clip).judge(wide, PROMPTS)
    np.testing.assert_allclose(scores, logits.diagonal().numpy() / np.exp(3.0), rtol=1e-4)


def test_prompts_beyond_the_models_length_are_cut(tiny_clip):
    clip_score = score("clip_score", tiny_clip)
    beyond = "a red circle " * 40
    same_start = beyond + "on black"
    values = [clip_score.judge(noise(1), [text]) for text in (beyond, same_start)]
    assert values[0] == values[1]


def test_clip_features_are_unit_picture_embeddings(tiny_clip):
    clip_features = space("clip_features", tiny_clip)
    features = clip_features.features(noise())
    expected = by_transformers(tiny_clip, as_images(noise()), PROMPTS).image_embeds
    assert features.shape == (3, clip_features.width) and features.dtype == np.float32
    np.testing.assert_allclose(features, expected, rtol=1e-4, atol=1e-6)


def save_head(path: Path, width: int) -> torch.nn.Sequential:
    """A head as LAION and ImageReward keep theirs: linear layers with dropout between them."""
    torch.manual_seed(1)
    layers = torch.nn.Sequential(
        torch.nn.Linear(width, 10),
        torch.nn.Dropout(0.2),
        torch.nn.Linear(10, 6),
        torch.nn.Dropout(0.1),
        torch.nn.Linear(6, 1),
    )
    save_file({f"layers.{key}": value for key, value in layers.state_dict().items()}, path)
    return layers.eval()


def test_aesthetic_score_is_the_head_on_clips_picture_embedding(tmp_path):
    head = save_head(save_clip(tmp_path) / "aesthetic_head.safetensors", 12)
    embeddings = by_transformers(tmp_path, as_images(noise()), PROMPTS).image_embeds
    aesthetic = score("aesthetic", tmp_path)
    with torch.no_grad():
        expected = head(embeddings).squeeze(-1)
    np.testing.assert_allclose(aesthetic.judge(noise(), PROMPTS), expected, rtol=1e-4)
    np.testing.assert_array_equal(
        aesthetic.judge(noise(), PROMPTS), aesthetic.judge(noise(), PROMPTS[::-1])
    )


# Other towers


def save_blip(folder: Path) -> Path:
    from transformers import BlipConfig, BlipForImageTextRetrieval, CLIPImageProcessorPil

    torch.manual_seed(0)
    tokenizer = build_tokenizer()
    tower = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "initializer_range": 0.3,
    }
    text = {"vocab_size": len(tokenizer), "max_position_embeddings": 40, "encoder_hidden_size": 16}
    config = BlipConfig(
        text_config=tower | text, vision_config=tower | {"image_size": 32, "patch_size": 8}
    )
    BlipForImageTextRetrieval(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    CLIPImageProcessorPil(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
    ).save_pretrained(folder)
    return folder


def test_image_reward_is_the_head_on_blips_reading(tmp_path):
    from transformers import BlipForImageTextRetrieval, CLIPImageProcessorPil, CLIPTokenizer

    head = save_head(save_blip(tmp_path) / "reward_head.safetensors", 16)
    blip = BlipForImageTextRetrieval.from_pretrained(tmp_path).eval()
    images = CLIPImageProcessorPil.from_pretrained(tmp_path)(
        as_images(noise()), return_tensors="pt"
    )
    words = CLIPTokenizer.from_pretrained(tmp_path)(PROMPTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        read = blip(words.input_ids, images.pixel_values, attention_mask=words.attention_mask)
        raw = head(read.question_embeds[:, 0]).squeeze(-1).numpy()
    rewards = score("image_reward", tmp_path).judge(noise(), PROMPTS)
    np.testing.assert_allclose(rewards, (raw - 0.16717363) / 1.03333950, rtol=1e-4)
    assert np.ptp(rewards) > 0.001


def test_image_reward_does_without_blips_own_heads(tmp_path):
    from safetensors.torch import load_file

    save_head(save_blip(tmp_path) / "reward_head.safetensors", 16)
    before = score("image_reward", tmp_path).judge(noise(), PROMPTS)
    unused = ("itm_head", "text_proj", "vision_proj")
    weights = load_file(tmp_path / "model.safetensors")
    save_file(
        {key: value for key, value in weights.items() if not key.startswith(unused)},
        tmp_path / "model.safetensors",
        metadata={"format": "pt"},
    )
    np.testing.assert_array_equal(score("image_reward", tmp_path).judge(noise(), PROMPTS), before)


def test_dino_features_are_the_class_token(tmp_path):
    from transformers import BitImageProcessorPil, Dinov2Config, Dinov2Model

    torch.manual_seed(0)
    model = Dinov2Model(
        Dinov2Config(
            hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=7
        )
    ).eval()
    processor = BitImageProcessorPil(
        size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}
    )
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    with torch.no_grad():
        expected = model(**processor(as_images(noise()), return_tensors="pt")).pooler_output
    dino = space("dino_features", tmp_path)
    features = dino.features(noise())
    assert features.shape == (3, dino.width) == (3, 16) and features.dtype == np.float32
    np.testing.assert_allclose(features, expected, rtol=1e-4, atol=1e-6)


def inception_weights(shapes: dict[str, torch.Size]) -> dict[str, torch.Tensor]:
    """The same random weights on every machine: numpy keeps RandomState as it is."""
    rng, weights = np.random.RandomState(0), {}
    for key in sorted(shapes):
        values = rng.standard_normal(shapes[key]).astype(np.float32)
        if key.endswith("conv.weight"):
            values *= np.sqrt(2 / values[0].size)
        elif key.endswith(("running_var", "bn.weight")):
            values = 1 + 0.1 * np.tanh(values)
        else:
            values *= 0.1
        weights[key] = torch.from_numpy(values)
    return weights


def test_inception_features_equal_torch_fidelitys(tmp_path):
    """The figures are those of torch-fidelity 0.4's network with the same weights and pictures,
    which gave ours bit by bit; its package needs torchvision, hence figures.
    """
    from stages.scores.inception import InceptionV3

    with torch.device("meta"):
        names = InceptionV3().state_dict()
    shapes = {k: v.shape for k, v in names.items() if not k.endswith("num_batches_tracked")}
    save_file(inception_weights(shapes), tmp_path / "inception.safetensors")
    pictures = (np.arange(2 * 40 * 72 * 3) * 7919 % 256).astype(np.uint8).reshape(2, 40, 72, 3)
    inception = space("inception_features", tmp_path)
    features = inception.features(pictures)
    assert features.shape == (2, inception.width) and features.dtype == np.float32
    np.testing.assert_allclose(features.mean(1), INCEPTION_MEAN, rtol=1e-4)
    np.testing.assert_allclose(features.std(1), INCEPTION_DEVIATION, rtol=1e-4)
    np.testing.assert_allclose(features[:, [500, 1000, 1500, 2047]], INCEPTION_SOME, rtol=1e-3)


INCEPTION_MEAN = [0.6310054, 0.6309057]
INCEPTION_DEVIATION = [0.83760387, 0.83750015]
INCEPTION_SOME = [
    [0.2036508, 0.0013953, 0.0732016, 0.1084103],
    [0.1981662, 0.0016297, 0.0738349, 0.1054503],
]


# The registry and what goes wrong


def test_every_name_has_a_class_with_a_card():
    for name in SCORES | FEATURES:
        card = card_of(ScoreConfig(name=name))
        assert card.title and card.licence and card.weights
        assert card.explanation.endswith(".")
        assert card.low is None or card.high is None or card.low < card.high


def test_every_score_stands_in_the_documentation():
    page = (Path(__file__).parents[2] / "docs" / "scores.md").read_text()
    for name in SCORES | FEATURES:
        assert f"| `{name}` |" in page


def test_many_pictures_are_seen_in_batches(tiny_clip, monkeypatch):
    clip_score, clip_features = score("clip_score", tiny_clip), space("clip_features", tiny_clip)
    whole = clip_score.judge(noise(), PROMPTS), clip_features.features(noise())
    monkeypatch.setattr("stages.scores.pretrained._BATCH", 2)
    np.testing.assert_allclose(clip_score.judge(noise(), PROMPTS), whole[0], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(clip_features.features(noise()), whole[1], rtol=1e-4, atol=1e-6)


def test_unknown_names_are_told_what_was_meant():
    with pytest.raises(ConfigError, match="unknown score 'atributes'; did you mean attributes"):
        score("atributes")
    with pytest.raises(ConfigError, match="unknown feature space 'attributes'"):
        space("attributes")


@pytest.mark.parametrize("name", EMBEDDED)
def test_embedded_scores_take_no_model(name, tmp_path):
    with pytest.raises(ConfigError, match=rf"scores\.{name}\.model: .* takes no model"):
        (score if name in SCORES else space)(name, tmp_path)


@pytest.mark.parametrize("name", [n for n in SCORES | FEATURES if n not in EMBEDDED])
def test_a_missing_model_gives_one_sentence_that_names_it(name):
    with pytest.raises(ConfigError, match=rf"^scores\.{name}\.model: .*no/such.*hub") as caught:
        (score if name in SCORES else space)(name, Path("no/such"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["hps", "image_reward", "aesthetic"])
def test_scores_without_a_model_on_the_hub_ask_for_one(name):
    with pytest.raises(ConfigError, match=rf"scores\.{name}\.model is empty"):
        score(name)


def test_a_gated_model_says_what_to_do(monkeypatch):
    import huggingface_hub
    from huggingface_hub.errors import GatedRepoError

    def refuse(*_args, **_options):
        raise GatedRepoError.__new__(GatedRepoError)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(ConfigError, match=r"scores\.pick_score\.model: .* is gated: accept"):
        score("pick_score")


def test_half_a_model_is_refused_rather_than_drawn_at_random(tmp_path):
    from safetensors.torch import load_file

    save_clip(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    save_file(
        {key: value for key, value in weights.items() if not key.startswith("text_model")},
        tmp_path / "model.safetensors",
        metadata={"format": "pt"},
    )
    with pytest.raises(ConfigError, match=r"lacks \d+ of the weights of CLIPModel, such as text"):
        score("clip_score", tmp_path)


@pytest.mark.parametrize(
    ("lost", "said"),
    [
        ("model.safetensors", "cannot be loaded"),
        ("preprocessor_config.json", "preprocessor_config.json cannot be loaded"),
        ("tokenizer.json", "has no tokenizer"),
        ("config.json", "cannot be loaded"),
    ],
)
def test_a_model_without_one_of_its_files_is_said_so(lost, said, tmp_path):
    (save_clip(tmp_path) / lost).unlink()
    with pytest.raises(ConfigError, match=rf"scores\.clip_score\.model: .*{said}") as caught:
        score("clip_score", tmp_path)
    assert "\n" not in str(caught.value)


def test_dino_features_of_another_model_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="holds a model of type 'clip', not a DINOv2"):
        space("dino_features", save_clip(tmp_path))


def test_pickled_weights_are_not_read(tmp_path):
    save_clip(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(ConfigError, match="cannot be loaded"):
        score("clip_score", tmp_path)


def test_a_head_that_is_missing_or_of_another_width_is_said_so(tmp_path):
    save_clip(tmp_path)
    with pytest.raises(ConfigError, match=r"aesthetic_head\.safetensors cannot be loaded"):
        score("aesthetic", tmp_path)
    save_head(tmp_path / "aesthetic_head.safetensors", 20)
    with pytest.raises(ConfigError, match="from width 12 down to 1, found widths"):
        score("aesthetic", tmp_path)


def test_inception_weights_that_are_not_whole_are_said_so(tmp_path):
    save_file({"fc.weight": torch.zeros(1)}, tmp_path / "inception.safetensors")
    with pytest.raises(ConfigError, match=r"lacks \d+ of the network's weights, such as Conv2d_1a"):
        space("inception_features", tmp_path)


def test_prompts_and_sizes_that_the_shapes_scores_cannot_judge_are_said_so():
    picture = np.zeros((1, 64, 64, 3), np.uint8)
    for name in ("attributes", "layout"):
        with pytest.raises(ConfigError, match="no word 'elephant'"):
            score(name).judge(picture, ["a red elephant"])
    with pytest.raises(ConfigError, match="divisible by 8, not 50x64"):
        space("judge_features").features(picture[:, :, :50])
