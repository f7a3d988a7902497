"""Pretrained models: what is missing, damaged or gated is said in one sentence."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import save_file

from schemas.config import ScoreConfig
from schemas.errors import ConfigError
from stages.scores import EMBEDDED, FEATURES, SCORES, check_model
from tests.support.scores import PROMPTS, noise, save_clip, score, space

pytestmark = pytest.mark.slow


def test_many_pictures_are_seen_in_batches(tiny_clip, monkeypatch):
    clip_score, clip_features = score("clip_score", tiny_clip), space("clip_features", tiny_clip)
    whole = clip_score.judge(noise(), PROMPTS), clip_features.features(noise())
    monkeypatch.setattr("stages.scores.pretrained._BATCH", 2)
    np.testing.assert_allclose(clip_score.judge(noise(), PROMPTS), whole[0], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(clip_features.features(noise()), whole[1], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", [n for n in SCORES | FEATURES if n not in EMBEDDED])
def test_a_missing_model_gives_one_sentence_that_names_it(name):
    with pytest.raises(ConfigError, match=rf"^scores\.{name}\.model: .*no/such.*hub") as caught:
        (score if name in SCORES else space)(name, Path("no/such"))
    assert "\n" not in str(caught.value)


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


def test_pickled_weights_are_not_read(tmp_path):
    save_clip(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(ConfigError, match="cannot be loaded"):
        score("clip_score", tmp_path)


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("model.safetensors", POINTER, "model.safetensors is a git-lfs pointer"),
        ("model.safetensors", b"", "model.safetensors is not a whole safetensors file"),
        ("model.safetensors", b"\x08" + bytes(7) + b"{}", "is not a whole safetensors file"),
        ("tokenizer.json", POINTER, "tokenizer.json is a git-lfs pointer"),
        ("tokenizer.json", b'{"version', "tokenizer.json cannot be read"),
        ("config.json", b"[]", "config.json must hold a JSON object"),
        ("config.json", b"\xff", "config.json cannot be read"),
        (
            "config.json",
            b'{"model_type": "clip", "quantization_config": {"quant_method": "torchao"}}',
            r"is quantised \(torchao\)",
        ),
        ("preprocessor_config.json", b"{", "preprocessor_config.json cannot be read"),
    ],
)
def test_a_damaged_folder_is_said_before_work_and_at_opening(file, content, said, tmp_path):
    (save_clip(tmp_path) / file).write_bytes(content)
    for use in (
        lambda: check_model(ScoreConfig(name="clip_score", model=str(tmp_path))),
        lambda: score("clip_score", tmp_path),
    ):
        with pytest.raises(ConfigError, match=rf"^scores\.clip_score\.model: .*{said}") as caught:
            use()
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("tokenizer.json", b"{}"),
        ("tokenizer.json", b'{"model": {"type": "None"}, "added_tokens": []}'),
        ("config.json", b'{"model_type": "no such model"}'),
        ("config.json", b'{"model_type": "clip", "text_config": 3}'),
        ("preprocessor_config.json", b'{"image_processor_type": "NoSuchProcessor"}'),
    ],
)
def test_what_transformers_raises_is_one_sentence(file, content, tmp_path):
    (save_clip(tmp_path) / file).write_bytes(content)
    with pytest.raises(ConfigError, match=r"^scores\.clip_score\.model: ") as caught:
        score("clip_score", tmp_path)
    assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)


@pytest.mark.parametrize(
    "tensors",
    [
        {"layers.0.weight": np.zeros((3, 12), np.float32)},
        {"layers.0.bias": np.zeros(3, np.float32)},
        {"layers.0.weight": np.zeros(3, np.float32), "layers.0.bias": np.zeros(3, np.float32)},
        {"something": np.zeros(3, np.float32)},
    ],
)
def test_a_head_of_other_tensors_is_refused(tensors, tmp_path):
    from safetensors.numpy import save_file as save_arrays

    save_arrays(tensors, save_clip(tmp_path) / "aesthetic_head.safetensors")
    with pytest.raises(ConfigError, match=r"^scores\.aesthetic\.model: .*aesthetic_head") as caught:
        score("aesthetic", tmp_path)
    assert "\n" not in str(caught.value)


def test_a_file_in_place_of_a_folder_is_said_before_work(tmp_path):
    (tmp_path / "clip.safetensors").write_bytes(b"x")
    with pytest.raises(ConfigError, match=r"clip.safetensors is a file, not a model's folder"):
        check_model(ScoreConfig(name="clip_score", model=str(tmp_path / "clip.safetensors")))
