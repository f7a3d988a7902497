"""Teacher folders as people have them: each is refused with one sentence that names what is wrong,
or gives the same picture as stock diffusers does with the same folder.
"""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusion3Pipeline
from safetensors.torch import load_file, save_file

from schemas.bucket import Bucket
from schemas.config import TeacherConfig
from schemas.errors import ConfigError
from stages.ladd.sampling import Euler, Guidance, initial_noise, sample_flow
from stages.teachers import check_teacher, open_teacher

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 12345\n"
TRANSFORMER = "transformer/diffusion_pytorch_model.safetensors"
VAE = "vae/diffusion_pytorch_model.safetensors"
SCHEDULER = "scheduler/scheduler_config.json"
Spoil = Callable[[Path], object]


def edit(file: str, **fields) -> Spoil:
    """Set fields of a JSON file; `...` takes one out."""

    def spoil(folder: Path) -> None:
        content = json.loads((folder / file).read_text()) | fields
        kept = {name: value for name, value in content.items() if value is not ...}
        (folder / file).write_text(json.dumps(kept))

    return spoil


def write(file: str, content: bytes | str) -> Spoil:
    content = content.encode() if isinstance(content, str) else content
    return lambda folder: (folder / file).write_bytes(content)


def lose(name: str) -> Spoil:
    def spoil(folder: Path) -> None:
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    return spoil


def rename(file: str, new: str) -> Spoil:
    return lambda folder: (folder / file).rename((folder / file).with_name(new))


def weights(file: str, change: Callable[[dict[str, torch.Tensor]], object]) -> Spoil:
    def spoil(folder: Path) -> None:
        tensors = load_file(folder / file)
        change(tensors)
        save_file(tensors, folder / file, metadata={"format": "pt"})

    return spoil


def cut(file: str, length: int) -> Spoil:
    return lambda folder: (folder / file).write_bytes((folder / file).read_bytes()[:length])


def both(*spoils: Spoil) -> Spoil:
    return lambda folder: [spoil(folder) for spoil in spoils]


def in_shards(folder: Path) -> None:
    """The transformer in two files and an index."""
    tensors = load_file(folder / TRANSFORMER)
    names = sorted(tensors)
    places = {}
    for i, part in enumerate((names[::2], names[1::2]), 1):
        file = f"diffusion_pytorch_model-0000{i}-of-00002.safetensors"
        save_file({name: tensors[name] for name in part}, folder / "transformer" / file)
        places |= dict.fromkeys(part, file)
    (folder / TRANSFORMER).unlink()
    index = {"metadata": {"total_size": 1}, "weight_map": places}
    (folder / f"{TRANSFORMER}.index.json").write_text(json.dumps(index))


def only(*files: str) -> Spoil:
    """A folder that holds nothing but these files, with their first one's bytes as they are."""

    def spoil(folder: Path) -> None:
        content = (folder / TRANSFORMER).read_bytes()
        for path in folder.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        for file in files:
            (folder / file).write_bytes(content)

    return spoil


def a_link_to_nothing(folder: Path) -> None:
    (folder / TRANSFORMER).unlink()
    (folder / TRANSFORMER).symlink_to("../../blobs/0123")


def a_folder_in_its_place(folder: Path) -> None:
    (folder / "vae" / "config.json").unlink()
    (folder / "vae" / "config.json").mkdir()


def a_file_in_its_place(folder: Path) -> None:
    shutil.rmtree(folder / "vae")
    (folder / "vae").write_text("vae")


def another_tokenizer_3(folder: Path) -> None:
    shutil.rmtree(folder / "tokenizer_3")
    shutil.copytree(folder / "tokenizer", folder / "tokenizer_3")


def to_int8(tensors: dict[str, torch.Tensor]) -> None:
    tensors["proj_out.weight"] = tensors["proj_out.weight"].to(torch.int8)


def fp16_twins(folder: Path) -> None:
    for file in (TRANSFORMER, "text_encoder/model.safetensors"):
        shutil.copy(folder / file, (folder / file).with_suffix(".fp16.safetensors"))


NF4 = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
T5 = {"text_encoder_3": [None, None], "tokenizer_3": [None, None]}
HEUN = ["diffusers", "FlowMatchHeunDiscreteScheduler"]

BEFORE_WORK = {
    # git-lfs pointers
    "pointer weights": (write(TRANSFORMER, POINTER), "transformer.*git-lfs pointer.*git lfs pull"),
    "pointer config": (write("vae/config.json", POINTER), "vae.*git-lfs pointer"),
    "pointer tokenizer": (write("tokenizer_3/tokenizer.json", POINTER), "tokenizer_3.*pointer"),
    "pointer index": (write("model_index.json", POINTER), "model_index.json is a git-lfs pointer"),
    "pointer shards": (
        both(in_shards, write(f"{TRANSFORMER}.index.json", POINTER)),
        "index.json is a git-lfs pointer",
    ),
    # parts that are named and missing
    "no t5": (lose("text_encoder_3"), "no folder 'text_encoder_3'.*teacher.use_t5"),
    "no t5 tokenizer": (lose("tokenizer_3"), "no folder 'tokenizer_3'"),
    "a t5 whose tokenizer is null": (
        edit("model_index.json", tokenizer_3=[None, None]),
        "names no tokenizer_3",
    ),
    "t5 not spoken of": (edit("model_index.json", text_encoder_3=...), "text_encoder_3"),
    "no vae": (edit("model_index.json", vae=[None, None]), "names no vae"),
    "a file for a folder": (a_file_in_its_place, "no folder 'vae'"),
    "a folder for a file": (a_folder_in_its_place, "vae/config.json cannot be read"),
    "a link to nothing": (a_link_to_nothing, "transformer.*link to a file that is not there"),
    # tokenizers
    "no vocabulary": (lose("tokenizer/tokenizer.json"), "tokenizer has no tokenizer"),
    "no merges": (
        both(lose("tokenizer_2/tokenizer.json"), write("tokenizer_2/vocab.json", '{"a": 0}')),
        "tokenizer_2 has no tokenizer",
    ),
    "no length": (
        edit("tokenizer/tokenizer_config.json", model_max_length=...),
        "model_max_length",
    ),
    "endless length": (
        edit("tokenizer/tokenizer_config.json", model_max_length=int(1e30)),
        "no usable `model_max_length`",
    ),
    "length of text": (
        edit("tokenizer/tokenizer_config.json", model_max_length="77"),
        "no usable `model_max_length`",
    ),
    "no tokenizer config": (lose("tokenizer/tokenizer_config.json"), "no file tokenizer/tok"),
    # schedulers
    "heun in the index": (
        edit("model_index.json", scheduler=HEUN),
        "scheduler is a FlowMatchHeunDiscreteScheduler",
    ),
    "euler of noise": (
        edit(SCHEDULER, _class_name="EulerDiscreteScheduler"),
        "scheduler_config.json says .* a EulerDiscreteScheduler",
    ),
    "a shift of another name": (edit(SCHEDULER, shift=..., flow_shift=3.0), "field flow_shift"),
    "no shift": (edit(SCHEDULER, shift=...), "no number above 0 as `shift`"),
    "a shift of text": (edit(SCHEDULER, shift="3.0"), "no number above 0 as `shift`"),
    "a shift that is no number": (edit(SCHEDULER, shift=float("nan")), "no number above 0"),
    "a dynamic shift of null": (
        edit(SCHEDULER, use_dynamic_shifting=True, base_shift=None),
        "`base_shift`",
    ),
    "epsilon": (edit(SCHEDULER, prediction_type="epsilon"), "field prediction_type"),
    "500 timesteps": (edit(SCHEDULER, num_train_timesteps=500), "1000 num_train_timesteps"),
    "inverted": (edit(SCHEDULER, invert_sigmas=True), "inverted sigmas"),
    "a student's": (edit(SCHEDULER, stochastic_sampling=True), "stochastic_sampling"),
    # configs
    "no vae shift": (edit("vae/config.json", shift_factor=...), "vae/config.json .*shift_factor"),
    "vae shift null": (edit("vae/config.json", shift_factor=None), "no number `shift_factor`"),
    "no vae scale": (edit("vae/config.json", scaling_factor=...), "no number `scaling_factor`"),
    "another vae": (edit("vae/config.json", latent_channels=16), "of different models: .* vae"),
    "a tiny vae": (edit("vae/config.json", _class_name="AutoencoderTiny"), "a AutoencoderTiny"),
    "another t5": (edit("text_encoder_3/config.json", d_model=32), "text_encoder_3 has 32"),
    "another clip": (edit("text_encoder/config.json", projection_dim=9), "text encoders has 25"),
    "no table": (edit("transformer/config.json", pos_embed_max_size=...), "pos_embed_max_size"),
    "a size of text": (edit("transformer/config.json", patch_size="2"), "`patch_size`"),
    "json that ends": (cut("transformer/config.json", 30), "transformer/config.json cannot be"),
    "json that is a list": (write("vae/config.json", "[1]"), "must hold a JSON object"),
    "json that is deep": (write("vae/config.json", "[" * 99_999), "vae/config.json cannot be"),
    "json of bytes": (write("text_encoder/config.json", b"\xff\xfe\x00"), "text_encoder/config"),
    # weights
    "a missing shard": (
        both(in_shards, lose("transformer/diffusion_pytorch_model-00002-of-00002.safetensors")),
        "00002-of-00002.safetensors is missing",
    ),
    "an index of nothing": (
        both(in_shards, write(f"{TRANSFORMER}.index.json", "{}")),
        "no weight_map",
    ),
    "an index that ends": (
        both(in_shards, cut(f"{TRANSFORMER}.index.json", 50)),
        "index.json cannot be read",
    ),
    "only fp16": (rename(VAE, "diffusion_pytorch_model.fp16.safetensors"), "vae .*variant fp16"),
    "a pickle": (
        rename("text_encoder/model.safetensors", "pytorch_model.bin"),
        "text_encoder holds only pytorch_model.bin, a pickle.*save_pretrained",
    ),
    "gguf": (rename(TRANSFORMER, "sd3.5-Q4_K.gguf"), "GGUF"),
    "no weights": (lose(VAE), "vae has no weights: diffusion_pytorch_model.safetensors is missing"),
    "nf4": (
        edit("text_encoder_3/config.json", quantization_config=NF4),
        r"text_encoder_3 is quantised \(bitsandbytes\)",
    ),
    "gptq": (
        edit("transformer/config.json", quantization_config={"quant_method": "gptq"}),
        r"transformer is quantised \(gptq\)",
    ),
    "int8 weights": (weights(TRANSFORMER, to_int8), r"transformer are quantised \(proj_out.weight"),
    "half a file": (cut(TRANSFORMER, 9000), "safetensors is not a whole safetensors file"),
    "an empty file": (write(VAE, b""), "vae.*is not a whole safetensors file"),
    "a page of a web site": (write(VAE, b"<!DOCTYPE html>" * 99), "is not a whole safetensors"),
    "a missing layer": (
        weights(TRANSFORMER, lambda t: t.pop("proj_out.weight")),
        "transformer lack proj_out.weight",
    ),
    "a layer of another size": (
        weights(TRANSFORMER, lambda t: t.update({"proj_out.weight": torch.zeros(2, 2)})),
        r"proj_out.weight in .* is of shape \[2, 2\]",
    ),
    # other models
    **{
        name: (edit("model_index.json", _class_name=name), f"is a {name}, not a StableDiffusion3P")
        for name in (
            "FluxPipeline",
            "StableDiffusionXLPipeline",
            "StableDiffusionPipeline",
            "PixArtSigmaPipeline",
            "StableDiffusion3ControlNetPipeline",
        )
    },
    "flux's transformer": (
        edit("transformer/config.json", _class_name="FluxTransformer2DModel"),
        "a FluxTransformer2DModel, not a SD3Transformer2DModel",
    ),
    "a single file": (only("sd3.5_medium.safetensors"), "single file sd3.5_medium.*from_single_f"),
    "lora": (only("pytorch_lora_weights.safetensors"), "holds LoRA adapters"),
    "nothing": (only(), "is not a diffusers pipeline, because it has no model_index.json"),
    "controlnet": (
        both(
            only("diffusion_pytorch_model.safetensors"),
            write("config.json", '{"_class_name": "SD3ControlNetModel"}'),
        ),
        "holds a single SD3ControlNetModel",
    ),
    "a text encoder": (
        both(only("model.safetensors"), write("config.json", '{"architectures": ["T5Model"]}')),
        "holds a single T5Model",
    ),
}  # fmt: skip
"""Found from names, JSON files and headers, before anything is loaded."""

AT_OPENING = {
    "text encoder lacks": (
        weights("text_encoder/model.safetensors", lambda t: t.pop("text_projection.weight")),
        "text_encoder lack text_projection.weight",
    ),
    "text encoder of another size": (
        weights(
            "text_encoder_3/model.safetensors",
            lambda t: t.update({"shared.weight": torch.zeros(2, 2)}),
        ),
        "text_encoder_3 cannot be loaded",
    ),
    "vae lacks": (
        weights(VAE, lambda t: t.pop("decoder.conv_out.weight")),
        "vae lack decoder.conv_out.weight",
    ),
    "transformer has more": (
        weights(TRANSFORMER, lambda t: t.update({"blocks.0.weight": torch.zeros(2)})),
        "transformer hold blocks.0.weight",
    ),
    "not a number": (
        weights(TRANSFORMER, lambda t: t["proj_out.bias"].fill_(torch.nan)),
        "proj_out.bias in .*transformer holds values that are not finite",
    ),
    "an empty tokenizer": (write("tokenizer/tokenizer.json", "{}"), "tokenizer cannot be loaded"),
    "a tokenizer of nonsense": (
        edit("tokenizer_3/tokenizer.json", model={"type": "None"}),
        "tokenizer_3 cannot be loaded",
    ),
    "another tokenizer": (another_tokenizer_3, "tokens, but its text encoder only 8"),
    "a time shift that nobody knows": (
        edit(SCHEDULER, time_shift_type="cubic"),
        "scheduler_config.json cannot be loaded",
    ),
}

AS_STOCK = {
    "sound": lambda folder: None,
    "no t5": both(edit("model_index.json", **T5), lose("text_encoder_3"), lose("tokenizer_3")),
    "a t5 that is not named": edit("model_index.json", **T5),
    "an unknown field of the transformer": edit("transformer/config.json", caption_channels=7),
    "an unknown field of the vae": edit("vae/config.json", latents_mean=[0.5] * 4),
    "a field of a newer version": edit("transformer/config.json", _diffusers_version="9.9"),
    "an unknown field of a text encoder": edit("text_encoder/config.json", colour="red"),
    "another shift": edit(SCHEDULER, shift=1.7),
    "a dynamic shift": edit(SCHEDULER, use_dynamic_shifting=True, base_shift=0.4, max_shift=2.0),
    "a dynamic shift without a shift": edit(SCHEDULER, use_dynamic_shifting=True, shift=...),
    "a terminal shift": edit(SCHEDULER, shift_terminal=0.1),
    "karras": edit(SCHEDULER, use_karras_sigmas=True),
    "a scheduler without a class": edit(SCHEDULER, _class_name=...),
    "another pipeline of the same parts": edit(
        "model_index.json", _class_name="StableDiffusion3Img2ImgPipeline"
    ),
    "weights in two files": in_shards,
    "half-precision twins": fp16_twins,
    "litter": both(
        write(f"{TRANSFORMER}.bak", b"x"),
        write("transformer/._diffusion_pytorch_model.safetensors", b"\x00\x05\x16\x07"),
        write("tokenizer/.DS_Store", b"\x00"),
    ),
    "more than a text encoder": weights(
        "text_encoder/model.safetensors", lambda t: t.update({"logit_scale": torch.zeros(1)})
    ),
    "another tokenizer's class": edit(
        "model_index.json", tokenizer_3=["transformers", "PreTrainedTokenizerFast"]
    ),
}


def opened(folder: Path):
    config = TeacherConfig(model=str(folder), dtype="float32", max_sequence_length=12)
    check_teacher(config)
    return open_teacher(config)


def drawn(folder: Path) -> torch.Tensor:
    """What the teacher makes of a fixed prompt and noise."""
    teacher, bucket = opened(folder), Bucket(48, 32)
    noise, _ = initial_noise([3], teacher.latent_shape(bucket))
    return sample_flow(
        teacher.backbone(),
        noise,
        teacher.encode_prompts(["a red circle"]),
        Euler(teacher.sigmas(2, bucket)),
        Guidance(teacher.encode_prompts([""]), 4.0, range(2)),
    )


@pytest.fixture
def folder(tiny_sd35_t5, tmp_path) -> Path:
    """A teacher's folder to spoil."""
    return Path(shutil.copytree(tiny_sd35_t5, tmp_path / "teacher"))


def must_be_one_sentence(error: ConfigError, said: str, folder: Path) -> None:
    assert str(error).startswith("teacher.model: ") and str(folder) in str(error)
    assert "\n" not in str(error) and len(str(error)) < 600, said


@pytest.mark.parametrize("name", BEFORE_WORK)
def test_what_is_wrong_is_said_before_work(name, folder):
    spoil, said = BEFORE_WORK[name]
    spoil(folder)
    config = TeacherConfig(model=str(folder), dtype="float32")
    with pytest.raises(ConfigError, match=said) as before:
        check_teacher(config)
    must_be_one_sentence(before.value, said, folder)
    with pytest.raises(ConfigError, match=said):
        open_teacher(config).sigmas(2, Bucket(32, 32))


@pytest.mark.parametrize("name", AT_OPENING)
def test_what_libraries_raise_is_one_sentence(name, folder):
    spoil, said = AT_OPENING[name]
    spoil(folder)
    with pytest.raises(ConfigError, match=said) as error:
        teacher = opened(folder)
        teacher.count_tokens(["a red circle"])
        drawn(folder)
        teacher.decode_latents(torch.zeros(1, 4, 8, 8))
    must_be_one_sentence(error.value, said, folder)


@pytest.mark.parametrize("name", AS_STOCK)
def test_a_folder_is_used_as_stock_diffusers_uses_it(name, folder):
    AS_STOCK[name](folder)
    latents = drawn(folder)
    index = json.loads((folder / "model_index.json").read_text())
    absent = {name: None for name in T5 if index[name] == [None, None]}  # stock asks for them
    pipe = StableDiffusion3Pipeline.from_pretrained(folder, **absent)
    pipe.set_progress_bar_config(disable=True)
    noise, _ = initial_noise([3], tuple(latents.shape[1:]))
    expected = pipe(
        "a red circle",
        height=32,
        width=48,
        num_inference_steps=2,
        guidance_scale=4.0,
        latents=noise,
        max_sequence_length=12,
        output_type="latent",
    ).images
    torch.testing.assert_close(latents, expected, atol=1e-4, rtol=1e-3)


def test_a_t5_that_is_not_used_may_be_anything(folder):
    (folder / "text_encoder_3" / "model.safetensors").write_bytes(POINTER)
    teacher = open_teacher(TeacherConfig(model=str(folder), dtype="float32", use_t5=False))
    assert teacher.encode_prompts(["a red circle"]).null_tokens == 256


def test_a_file_in_place_of_a_folder(tmp_path):
    (tmp_path / "sd3.5_medium.safetensors").write_bytes(b"x")
    config = TeacherConfig(model=str(tmp_path / "sd3.5_medium.safetensors"))
    for use in (check_teacher, open_teacher):
        with pytest.raises(ConfigError, match=r"sd3.5_medium.safetensors is a file.*from_single"):
            use(config)


def test_a_run_refuses_before_it_starts(refused, folder, tmp_path):
    (folder / TRANSFORMER).write_bytes(POINTER)
    code, text = refused(teacher={"model": str(folder)})
    assert code == 2 and "git-lfs pointer" in text
    assert not (tmp_path / "store" / "runs").exists()


@pytest.mark.parametrize(
    "spoil",
    [
        write("transformer/config.json", "[]"),
        edit("transformer/config.json", patch_size="2"),
        edit("transformer/config.json", num_attention_heads=None),
        edit("vae/config.json", block_out_channels=3),
        edit("tokenizer/tokenizer_config.json", model_max_length=None),
    ],
)
def test_an_odd_folder_is_not_estimated(spoil, folder):
    from stages.teachers import model_costs
    from tests.support.tiny_sd3 import make_tiny_config

    spoil(folder)
    assert model_costs(make_tiny_config(folder, folder).teacher) is None


def test_the_check_loads_neither_torch_nor_transformers(folder):
    program = (
        "import sys; from schemas.config import TeacherConfig; from stages.teachers import *;"
        "from stages.teachers import check_teacher;"
        f"check_teacher(TeacherConfig(model={str(folder)!r}));"
        "print([m for m in ('torch', 'transformers', 'diffusers') if m in sys.modules])"
    )
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert said.stdout.strip() == "[]", said.stderr


def damage(file: Path, rng: random.Random) -> None:
    """Change, zero, cut out or repeat some bytes, mostly near the beginning."""
    content = bytearray(file.read_bytes())
    place = rng.randrange(min(len(content), rng.choice((16, 400, 100_000))))
    length = rng.choice((1, 3, 50, 5000))
    kind = rng.randrange(4)
    if kind == 0:
        content[place : place + length] = rng.randbytes(len(content[place : place + length]))
    elif kind == 1:
        content[place : place + length] = bytes(len(content[place : place + length]))
    elif kind == 2:
        del content[place : place + length]
    else:
        content[place:place] = content[place : place + length]
    file.write_bytes(content)


def test_no_damage_raises_anything_but_one_sentence(tiny_sd35_t5, tmp_path):
    names = [p.relative_to(tiny_sd35_t5) for p in sorted(tiny_sd35_t5.rglob("*")) if p.is_file()]
    folder, refused = Path(shutil.copytree(tiny_sd35_t5, tmp_path / "teacher")), 0
    for seed in range(200):
        rng = random.Random(seed)
        name = rng.choice(names)
        damage(folder / name, rng)
        try:
            check_teacher(TeacherConfig(model=str(folder)))
            if seed % 20 == 0:
                drawn(folder)
        except ConfigError as error:
            refused += 1
            assert "\n" not in str(error), (seed, name)
        shutil.copy(tiny_sd35_t5 / name, folder / name)
    assert 60 < refused < 200
