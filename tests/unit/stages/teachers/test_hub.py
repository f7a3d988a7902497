"""Models that the hub does not give: each of its answers is one sentence."""

from __future__ import annotations

import errno

import httpx2
import pytest
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from schemas.errors import ConfigError, ServiceUnavailable
from stages.teachers.hub import commit_of, model_folder


def test_model_that_is_nowhere(refused):
    code, text = refused(teacher={"model": "nobody/no-such-model"})
    assert code == 2, text
    assert (
        "teacher.model: 'nobody/no-such-model' is neither a local folder nor a model that the "
        "hub provides" in text
    )


def answer(kind: type[HfHubHTTPError], status: int) -> HfHubHTTPError:
    request = httpx2.Request("GET", "https://huggingface.co/api/models/some/model")
    return kind("the hub says no", response=httpx2.Response(status, request=request))


def nowhere(cause: Exception) -> Exception:
    """What the hub's library raises when the cache does not help either."""
    error = LocalEntryNotFoundError("there is no snapshot folder in the cache")
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "kind", "said"),
    [
        (answer(GatedRepoError, 403), ConfigError, "is gated: accept its licence"),
        (answer(RepositoryNotFoundError, 401), ConfigError, "check the name, .* and HF_TOKEN"),
        (answer(RepositoryNotFoundError, 404), ConfigError, "nor a model that the hub provides"),
        (answer(RevisionNotFoundError, 404), ConfigError, "has no revision v9 on the hub"),
        (answer(HfHubHTTPError, 429), ServiceUnavailable, r"right now \(HTTP 429\)"),
        (nowhere(answer(HfHubHTTPError, 503)), ServiceUnavailable, r"\(HTTP 503\)"),
        (nowhere(OfflineModeIsEnabled("no")), ConfigError, "HF_HUB_OFFLINE is set"),
        (
            nowhere(httpx2.ConnectError("name or service not known")),
            ConfigError,
            r"the network and HF_TOKEN \(name or service not known\)",
        ),
        (httpx2.ProxyError("407 from the proxy"), ConfigError, r"HF_TOKEN \(407 from the proxy\)"),
        (OSError(errno.ENOSPC, "No space left on device"), ConfigError, "no space left.*HF_HOME"),
        (PermissionError(errno.EACCES, "Permission denied"), ConfigError, "denied.*HF_HOME"),
        (OSError(errno.EROFS, "Read-only file system"), ConfigError, "read-only.*HF_HOME"),
    ],
)
def test_each_answer_of_the_hub_is_one_sentence(error, kind, said, monkeypatch):
    def refuse(*_args, **_options):
        raise error

    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    with pytest.raises(kind, match=said) as caught:
        model_folder("some/model", "v9", field="teacher.model", patterns=["*"])
    text = str(caught.value)
    assert text.startswith("teacher.model: ") and "'some/model'" in text and "\n" not in text


def test_a_folder_that_is_not_there_has_no_commit():
    """Such as the weights of a score that the run does not reach."""
    assert commit_of("./weights/image-reward", None) is None


def test_a_snapshot_of_which_a_part_is_missing_names_it(folder_of_hub, monkeypatch):
    """As an interrupted download leaves it, when the hub cannot be reached afterwards."""
    from schemas.config import TeacherConfig
    from stages.teachers import check_teacher, open_teacher

    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: str(folder_of_hub))
    config = TeacherConfig(model="some/model", use_t5=False)
    check_teacher(config)  # it may still be downloaded
    with pytest.raises(
        ConfigError, match=r"has no folder 'vae', which its model_index\.json names"
    ):
        open_teacher(config)


@pytest.fixture
def folder_of_hub(tiny_sd3, tmp_path):
    import shutil

    folder = tmp_path / "snapshot"
    shutil.copytree(tiny_sd3, folder, ignore=shutil.ignore_patterns("vae"))
    return folder
