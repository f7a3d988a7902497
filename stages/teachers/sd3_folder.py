"""Whether a folder is a Stable Diffusion 3 pipeline that can be a teacher, from names, JSON files
and safetensors headers. Imports no torch.

Everything that passes is used as stock diffusers would use it.
"""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any

from schemas.config import TeacherConfig
from schemas.errors import ConfigError
from stages.teachers.folder_check import ModelFolder, what_it_is
from stages.teachers.hub_models import HubModel
from stages.teachers.sd3_layers import linear_layers

FIELD = "teacher.model"
START_FIELD = "distill.init"
INDEX = "model_index.json"
SCHEDULER = "scheduler/scheduler_config.json"
_PIPELINES = (
    "StableDiffusion3Pipeline",
    "StableDiffusion3Img2ImgPipeline",
    "StableDiffusion3InpaintPipeline",
)
"""Pipelines with the same parts."""
_CLASSES = {
    "transformer": "SD3Transformer2DModel",
    "vae": "AutoencoderKL",
    "text_encoder": "CLIPTextModelWithProjection",
    "text_encoder_2": "CLIPTextModelWithProjection",
    "text_encoder_3": "T5EncoderModel",
    "scheduler": "FlowMatchEulerDiscreteScheduler",
}
PARTS = (
    "transformer",
    "vae",
    "text_encoder",
    "text_encoder_2",
    "tokenizer",
    "tokenizer_2",
    "scheduler",
)
T5_PARTS = ("text_encoder_3", "tokenizer_3")
TWINS = "*.fp16*"
"""Half-precision copies of the same weights, as in SD3.5's folders. They are never read."""
_SIZES = (
    "patch_size",
    "in_channels",
    "out_channels",
    "num_layers",
    "num_attention_heads",
    "attention_head_dim",
    "joint_attention_dim",
    "pooled_projection_dim",
    "pos_embed_max_size",
)
"""Fields of transformer/config.json. diffusers would replace a missing one by its class's default,
which fits no published model.
"""
_KINDS = (".json", ".txt", ".model", ".safetensors")
"""Endings of the files that are used."""
_TOKENIZERS = (("tokenizer.json",), ("vocab.json", "merges.txt"), ("spiece.model",))
"""Files of which a tokenizer needs one group. Without any, transformers makes an empty one."""


def hub_model(config: TeacherConfig) -> HubModel:
    """Return the teacher as a model of the hub, with the files that are used."""
    assert config.model is not None
    parts = [*PARTS, *(T5_PARTS if config.use_t5 else ())]
    return HubModel(
        FIELD,
        config.model,
        config.revision,
        patterns=[INDEX, *(f"{part}/*{kind}" for part in parts for kind in _KINDS)],
        ignored=[TWINS],
        required=[
            INDEX,
            SCHEDULER,
            *(f"{part}/*.safetensors" for part in PARTS if part in _MODELS),
        ],
        check=partial(check_teacher, config),
    )


def check_teacher(config: TeacherConfig, folder: Path) -> None:
    """Raise ConfigError unless the folder can be a teacher."""
    parts = check_folder(folder, use_t5=config.use_t5)
    assert "scheduler" in parts
    refuse_students_scheduler(folder, ModelFolder(folder, FIELD).json(SCHEDULER))


def check_start(folder: Path, teacher: Path) -> Path:
    """Return the folder of the transformer that a folder is or holds. Raises ConfigError unless its
    weights are here and it has the architecture of the teacher's.
    """
    place = folder / "transformer" if (folder / "transformer").is_dir() else folder
    model = ModelFolder(place, START_FIELD)
    model.check_part("")
    found = model.json("config.json")
    wanted = ModelFolder(teacher, FIELD).json("transformer/config.json")
    for name in ("_class_name", *_SIZES, "qk_norm", "dual_attention_layers"):
        if (found.get(name) or None) != (wanted.get(name) or None):
            raise ConfigError(
                f"{START_FIELD}: {place} has {found.get(name)!r} as {name}, but the teacher's "
                f"transformer {wanted.get(name)!r}; a student starts from one of the teacher's "
                "architecture"
            )
    model.check_not_quantised("", found)
    model.weights("", _MODELS["transformer"])
    return place


def parts_of(folder: Path, *, use_t5: bool) -> list[str]:
    """Return the parts that are used of a pipeline: T5 only if its model_index.json names it.

    Raises ConfigError for another pipeline, and for one that names no part of a needed kind.
    """
    model = ModelFolder(folder, FIELD)
    if not (folder / INDEX).exists():
        raise ConfigError(
            f"{FIELD}: {folder} is not a diffusers pipeline, because it has no {INDEX}: "
            f"{what_it_is(folder)}"
        )
    index = model.json(INDEX)
    pipeline = index.get("_class_name")
    if pipeline not in _PIPELINES:
        raise ConfigError(
            f"{FIELD}: {folder} is a {pipeline}, not a {_PIPELINES[0]}, which is what this "
            "teacher family needs"
        )
    if use_t5 and "text_encoder_3" not in index:
        raise ConfigError(
            f"{FIELD}: {folder / INDEX} does not say whether there is a text_encoder_3; write "
            '`"text_encoder_3": [null, null]` if there is none, or set teacher.use_t5 to false'
        )
    parts = [*PARTS, *(T5_PARTS if use_t5 and _named(index, "text_encoder_3") else ())]
    for part in parts:
        name = _named(index, part)
        if name is None:
            raise ConfigError(f"{FIELD}: {folder / INDEX} names no {part}, which is needed")
        _check_class(folder / INDEX, part, name)
    return parts


def check_folder(folder: Path, *, use_t5: bool) -> list[str]:
    """Check all parts that are used and return their names. Raises ConfigError for the first that
    is missing, damaged, quantised, or that stock diffusers would not use.
    """
    model = ModelFolder(folder, FIELD)
    parts = parts_of(folder, use_t5=use_t5)
    for part in parts:
        if not (folder / part).is_dir():
            raise ConfigError(
                f"{FIELD}: {folder} has no folder {part!r}, which its {INDEX} names; it must be a "
                "complete Stable Diffusion 3 pipeline as `save_pretrained` writes it"
                + ("; or set teacher.use_t5 to false" if part in T5_PARTS else "")
            )
        model.check_part(part)
    configs = {part: model.json(f"{part}/config.json") for part in parts if part in _MODELS}
    for part, config in configs.items():
        _check_class(folder / part / "config.json", part, config.get("_class_name"))
        model.check_not_quantised(part, config)
    check_scheduler(folder, model.json(SCHEDULER))
    _check_sizes(folder, configs)
    for part in parts:
        if part.startswith("tokenizer"):
            _check_tokenizer(model, part)
    _check_length(model, configs["text_encoder"])
    weights = {part: model.weights(part, _MODELS[part]) for part in configs}
    _check_layers(folder, configs["transformer"], weights["transformer"])
    return parts


_MODELS = {
    "transformer": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
    "text_encoder": "model",
    "text_encoder_2": "model",
    "text_encoder_3": "model",
}
"""Parts with weights, and the name of their files."""


def check_scheduler(folder: Path, scheduler: dict[str, Any]) -> None:
    """Raise ConfigError unless diffusers' flow-matching Euler scheduler reads these settings as
    they are meant.
    """
    file = folder / SCHEDULER
    _check_class(file, "scheduler", scheduler.get("_class_name"))
    strange = [
        name
        for name in scheduler
        if ("shift" in name or name == "prediction_type") and name not in _SHIFTS
    ]
    if strange and scheduler.get(strange[0]) not in (None, "flow_prediction"):
        raise ConfigError(
            f"{FIELD}: {file} has the field {strange[0]}, which diffusers' "
            f"{_CLASSES['scheduler']} does not know and would ignore; its shift is called `shift`"
        )
    if not _is_positive(scheduler.get("shift")) and not scheduler.get("use_dynamic_shifting"):
        raise ConfigError(f"{FIELD}: {file} has no number above 0 as `shift`")
    if scheduler.get("use_dynamic_shifting"):
        for name in ("base_shift", "max_shift", "base_image_seq_len", "max_image_seq_len"):
            if name in scheduler and not _is_positive(scheduler[name]):
                raise ConfigError(f"{FIELD}: {file} has no number above 0 as `{name}`")
    if scheduler.get("num_train_timesteps", 1000) != 1000 or scheduler.get("invert_sigmas"):
        raise ConfigError(
            f"{FIELD}: {file} must have 1000 num_train_timesteps and no inverted sigmas, as all "
            "of Stable Diffusion 3"
        )


_SHIFTS = {"shift", "use_dynamic_shifting", "base_shift", "max_shift", "shift_terminal"} | {
    "time_shift_type"
}


def refuse_students_scheduler(folder: Path, scheduler: dict[str, Any]) -> None:
    """Raise ConfigError for a scheduler that adds noise in every step, as a student's does: a
    teacher is sampled without.
    """
    if scheduler.get("stochastic_sampling"):
        raise ConfigError(
            f"{FIELD}: {folder / SCHEDULER} has `stochastic_sampling`, as few-step students have; "
            "name the model that the student was made from"
        )


def _named(index: dict[str, Any], part: str) -> str | None:
    """Return the class that model_index.json names for a part."""
    entry = index.get(part)
    return entry[1] if isinstance(entry, list) and len(entry) == 2 else None


def _check_class(file: Path, part: str, name: Any) -> None:
    wanted = _CLASSES.get(part)
    if wanted is not None and name is not None and name != wanted:
        raise ConfigError(
            f"{FIELD}: {file} says that the part {part} is a {name}, not a {wanted}, which is what "
            "this teacher family needs"
        )


def _check_sizes(folder: Path, configs: dict[str, dict[str, Any]]) -> None:
    """Check the fields that are read, and that the parts fit each other."""
    transformer, vae = configs["transformer"], configs["vae"]
    for name in _SIZES:
        _require_count(folder, "transformer", transformer, name)
    _require_count(folder, "vae", vae, "latent_channels")
    blocks = vae.get("block_out_channels")
    if not isinstance(blocks, list) or not blocks:
        raise ConfigError(f"{FIELD}: {folder}/vae/config.json has no list `block_out_channels`")
    for name in ("scaling_factor", "shift_factor"):
        value = vae.get(name)
        if not (_is_positive(value) if name == "scaling_factor" else _is_number(value)):
            raise ConfigError(
                f"{FIELD}: {folder}/vae/config.json has no number `{name}`; the autoencoder of "
                "Stable Diffusion 3 has both a scaling_factor and a shift_factor"
            )
    clip = [configs[part].get("projection_dim") for part in ("text_encoder", "text_encoder_2")]
    t5 = configs.get("text_encoder_3", {}).get("d_model")
    for one, size, other, expected in (
        ("vae", vae["latent_channels"], "in_channels", transformer["in_channels"]),
        (
            "text encoders",
            _sum(clip),
            "pooled_projection_dim",
            transformer["pooled_projection_dim"],
        ),
        ("text_encoder_3", t5, "joint_attention_dim", transformer["joint_attention_dim"]),
    ):
        if size is not None and size != expected:
            raise ConfigError(
                f"{FIELD}: the parts of {folder} are of different models: the transformer's "
                f"{other} is {expected}, but {one} has {size}"
            )


def _require_count(folder: Path, part: str, config: dict[str, Any], name: str) -> None:
    value = config.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ConfigError(f"{FIELD}: {folder}/{part}/config.json has no whole number `{name}`")


def _check_tokenizer(model: ModelFolder, part: str) -> None:
    folder = model.path / part
    if not any(all((folder / file).is_file() for file in group) for group in _TOKENIZERS):
        raise ConfigError(
            f"{FIELD}: {folder} has no tokenizer: it needs tokenizer.json, or vocab.json and "
            "merges.txt, or spiece.model"
        )
    for name in ("tokenizer.json", "vocab.json", "tokenizer_config.json"):
        if (folder / name).exists():
            model.json(f"{part}/{name}")


def _check_length(model: ModelFolder, encoder: dict[str, Any]) -> None:
    """Check the number of tokens to which diffusers pads the prompt for both CLIP encoders."""
    file = "tokenizer/tokenizer_config.json"
    config = model.json(file)
    length = config.get("model_max_length", config.get("max_len"))
    longest = encoder.get("max_position_embeddings")
    if not isinstance(length, int) or length < 3 or length > (longest or 1_000_000):
        raise ConfigError(
            f"{FIELD}: {model.path / file} has no usable `model_max_length`: it is {length}, and "
            f"the text encoder reads 3 to {longest or 'a few hundred'} tokens"
        )


def _check_layers(folder: Path, config: dict[str, Any], weights: dict[str, Any]) -> None:
    """Check that the transformer's files hold the linear layers that its config.json describes."""
    for name, inputs, outputs in linear_layers(config):
        found = weights.get(f"{name}.weight")
        if found is None:
            raise ConfigError(
                f"{FIELD}: the weights in {folder}/transformer lack {name}.weight, which its "
                "config.json describes; they are incomplete, or of another model"
            )
        if found.shape != (outputs, inputs):
            raise ConfigError(
                f"{FIELD}: {name}.weight in {folder}/transformer is of shape "
                f"{list(found.shape)}, but its config.json describes {[outputs, inputs]}"
            )


def _is_number(value: Any) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and math.isfinite(value)


def _is_positive(value: Any) -> bool:
    return _is_number(value) and value > 0


def _sum(values: list[Any]) -> int | None:
    return sum(values) if all(isinstance(value, int) for value in values) else None
