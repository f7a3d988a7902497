"""A model's folder: a local folder, or a snapshot from the Hugging Face hub."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from schemas.config import TeacherConfig
from schemas.errors import ConfigError, ServiceUnavailable
from stages.teachers.folder_check import brief


def model_folder(
    model: str,
    revision: str | None,
    *,
    field: str,
    patterns: Sequence[str],
    ignored: Sequence[str] = (),
) -> Path:
    """`model` itself if it is a folder, else a snapshot of the hub's `model`: the files that match
    `patterns` and none of `ignored`.

    Raises ConfigError, naming the configuration's `field`, for a model that is neither or that is
    gated, and ServiceUnavailable when the hub answers that it is temporarily unable to serve it.
    """
    if Path(model).is_dir():
        return Path(model)
    if Path(model).is_file():
        raise ConfigError(
            f"{field}: {model} is a file, not a model's folder as `save_pretrained` writes it; "
            "convert a single-file checkpoint with diffusers' `from_single_file`"
        )

    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(
                model,
                revision=revision,
                allow_patterns=list(patterns),
                ignore_patterns=list(ignored),
            )
        )
    except Exception as error:  # of the hub, the network and the disk
        refuse(error, model, revision or "main", field)


def refuse(error: Exception, model: str, revision: str, field: str) -> NoReturn:
    """Raise what the hub's library could not do as one sentence."""
    from huggingface_hub import constants
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RevisionNotFoundError,
    )

    cause = error.__cause__ or error
    status = getattr(getattr(cause, "response", None), "status_code", 0)
    number = getattr(cause, "errno", None)
    if isinstance(error, GatedRepoError):
        raise ConfigError(
            f"{field}: {model!r} is gated: accept its licence on its hub page and set HF_TOKEN to "
            "a token that may read it"
        ) from error
    if isinstance(error, RevisionNotFoundError):
        raise ConfigError(
            f"{field}: {model!r} has no revision {revision} on the hub; look at its page for "
            "branches, tags and commits"
        ) from error
    if status == 429 or status >= 500:
        raise ServiceUnavailable(
            f"{field}: the hub cannot serve {model!r} right now (HTTP {status}); wait a while, "
            "then run the command again"
        ) from error
    if number in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS):
        raise ConfigError(
            f"{field}: {model!r} cannot be stored in the hub's cache {constants.HF_HUB_CACHE} "
            f"({os.strerror(number).lower()}); set HF_HOME to a folder that can be written and has "
            "enough space"
        ) from error
    mend = "check the name, the network and HF_TOKEN"
    if isinstance(cause, OfflineModeIsEnabled):
        mend = "HF_HUB_OFFLINE is set, so it must be in the hub's cache: download it once without"
    elif not status and not isinstance(cause, LocalEntryNotFoundError | HFValidationError):
        mend += f" ({brief(cause)})"
    raise ConfigError(
        f"{field}: {model!r} is neither a local folder nor a model that the hub provides "
        f"(revision {revision}); {mend}"
    ) from error


def local_folder(teacher: TeacherConfig) -> Path | None:
    """The teacher's folder if it is on this machine: a local folder, or a snapshot in the hub's
    cache. Downloads nothing.
    """
    assert teacher.model is not None
    if Path(teacher.model).is_dir():
        return Path(teacher.model)
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        index = try_to_load_from_cache(teacher.model, "model_index.json", revision=teacher.revision)
    except HFValidationError:
        return None
    return Path(index).parent if isinstance(index, str) else None


def commit_of(model: str, revision: str | None) -> str | None:
    """Return the commit that a revision of a hub model names now: as the hub says, or else as the
    cache on this machine has it. None if neither knows; opening the model then says why.
    """
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.file_download import repo_folder_name

    try:
        return HfApi().model_info(model, revision=revision, timeout=10).sha
    except HFValidationError:  # a folder that is not there
        return None
    except Exception:  # of hub or network: opening the model says what is wrong
        folder = repo_folder_name(repo_id=model, repo_type="model")
        known = Path(constants.HF_HUB_CACHE, folder, "refs", revision or "main")
        return known.read_text().strip() if known.is_file() else None
