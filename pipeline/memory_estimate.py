"""The memory that `distill` needs on each worker, for `plan`: from the teacher's own files, where
they are here, and without torch.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from schemas.config import PipelineConfig, TeacherConfig
from stages.teachers import EMBEDDED_REVISION
from stages.teachers.sd3_memory import Shapes, update_memory

_TRANSFORMER = "transformer/config.json"


def memory_words(config: PipelineConfig) -> str:
    """`, about 12.3 GB a worker`; empty where the teacher is not on this machine, or not whole:
    that is the business of those who open it.
    """
    folder = _local_folder(config.teacher)
    if folder is None:
        return ""
    try:
        transformer, vae, tokenizer = (
            json.loads((folder / name).read_text())
            for name in (_TRANSFORMER, "vae/config.json", "tokenizer/tokenizer_config.json")
        )
        size = _size(config, folder, transformer, vae, tokenizer)
    except (OSError, ValueError, KeyError):
        return ""
    return f", about {size / 1e9:.1f} GB a worker"


def _size(
    config: PipelineConfig,
    folder: Path,
    transformer: dict[str, Any],
    vae: dict[str, Any],
    tokenizer: dict[str, Any],
) -> int:
    unit = 2 ** (len(vae["block_out_channels"]) - 1) * transformer["patch_size"]
    largest = max(config.prompts.bucket_list(), key=lambda bucket: bucket.width * bucket.height)
    has_t5 = config.teacher.use_t5 and (folder / "text_encoder_3").is_dir()
    shapes = Shapes(
        rows=largest.height // unit,
        columns=largest.width // unit,
        text=tokenizer["model_max_length"] + (config.teacher.max_sequence_length if has_t5 else 1),
        share=-(-config.distill.global_batch // config.distill.workers),
        on_gpu=_on_gpu(config),
    )
    return update_memory(transformer, config.frozen_dtype, config.distill, shapes).total


def _local_folder(teacher: TeacherConfig) -> Path | None:
    if teacher.family not in ("sd3", "shapes"):
        return None
    if teacher.model is None:
        return EMBEDDED_REVISION.parent if teacher.family == "shapes" else None
    if Path(teacher.model).is_dir():
        return Path(teacher.model)
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(teacher.model, _TRANSFORMER, revision=teacher.revision)
    except HFValidationError:
        return None
    return Path(found).parents[1] if isinstance(found, str) else None


def _on_gpu(config: PipelineConfig) -> bool:
    """Whether the workers will have GPUs, as far as it can be told from here."""
    if config.distill.use_gpu is not None:
        return config.distill.use_gpu
    return config.ray.address is not None or shutil.which("nvidia-smi") is not None
