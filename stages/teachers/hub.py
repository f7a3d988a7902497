"""A model's folder: a local folder, or a snapshot from the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from schemas.config import TeacherConfig
from schemas.errors import ConfigError, ServiceUnavailable


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

    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
    )

    try:
        return Path(
            snapshot_download(
                model,
                revision=revision,
                allow_patterns=list(patterns),
                ignore_patterns=list(ignored),
            )
        )
    except GatedRepoError as error:
        raise ConfigError(
            f"{field}: {model!r} is gated: accept its licence on its hub page and set HF_TOKEN to "
            "a token that may read it"
        ) from error
    except (LocalEntryNotFoundError, HFValidationError, HfHubHTTPError, OSError) as error:
        answer = getattr(error.__cause__ or error, "response", None)
        if answer is not None and (answer.status_code == 429 or answer.status_code >= 500):
            raise ServiceUnavailable(
                f"{field}: the hub cannot serve {model!r} right now (HTTP {answer.status_code}); "
                "wait a while, then run the command again"
            ) from error
        raise ConfigError(
            f"{field}: {model!r} is neither a local folder nor a model that the hub provides "
            f"(revision {revision or 'main'}); check the name, the network and HF_TOKEN"
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
    from huggingface_hub.file_download import repo_folder_name

    try:
        return HfApi().model_info(model, revision=revision, timeout=10).sha
    except Exception:  # of hub, network or name: opening the model says what is wrong
        folder = repo_folder_name(repo_id=model, repo_type="model")
        known = Path(constants.HF_HUB_CACHE, folder, "refs", revision or "main")
        return known.read_text().strip() if known.is_file() else None
