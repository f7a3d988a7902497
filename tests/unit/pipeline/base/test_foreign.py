"""Exceptions of other libraries become one line that says what to do."""

from __future__ import annotations

import errno

import pytest
import ray.exceptions as of_ray
import torch

from pipeline.base.foreign import innermost, loss, page, sentence
from schemas.errors import ArtifactError

NOT_FOUND = ModuleNotFoundError("No module named 'bitsandbytes.nn'", name="bitsandbytes.nn")


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ENOSPC, "No space", "/data/x.tar"), ["/data/x.tar", "no space left"]),
        (OSError(errno.ENOSPC, "No space"), ["no space left"]),
        (PermissionError(errno.EACCES, "denied", "/root/x"), ["/root/x", "permission denied"]),
        (OSError(errno.EMFILE, "Too many"), ["ulimit -n"]),
        (OSError(errno.EROFS, "Read-only", "/x"), ["can only be read"]),
        (FileNotFoundError(errno.ENOENT, "No such", "/gone"), ["/gone", "moved or deleted"]),
        (MemoryError(), ["out of memory", "micro_batch"]),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to"), ["out of memory"]),
        (NOT_FOUND, ["bitsandbytes", "pip install"]),
        (ArtifactError("the part vae is missing"), ["the part vae is missing"]),
        (ValueError("first\nsecond"), ["ValueError: first"]),
        (KeyError(), ["KeyError"]),
        (of_ray.WorkerCrashedError(), ["was killed or crashed"]),
    ],
)
def test_one_line_with_the_mend(error, words):
    text = sentence(error)
    assert "\n" not in text and all(word in text for word in words), text


@pytest.mark.parametrize(
    ("error", "is_loss"),
    [
        (of_ray.WorkerCrashedError(), True),
        (of_ray.ActorDiedError(), True),
        (of_ray.ActorUnavailableError("away", None), True),
        (of_ray.OwnerDiedError("00" * 28, "", ""), True),
        (of_ray.NodeDiedError("node"), True),
        (of_ray.OutOfMemoryError("too much"), True),
        (of_ray.OutOfDiskError("full"), False),
        (of_ray.TaskCancelledError(), False),
        (torch.OutOfMemoryError("CUDA"), False),  # would recur
        (KeyError("x"), False),
    ],
)
def test_a_process_that_has_ended_is_told_from_an_error_that_recurs(error, is_loss):
    assert bool(loss(error)) == is_loss
    remote = of_ray.RayTaskError("distill", "page\nlast line", error).as_instanceof_cause()
    assert bool(loss(remote)) == is_loss and innermost(remote) is error


def test_the_page_has_all_causes():
    try:
        try:
            raise KeyError("inner")
        except KeyError as error:
            raise ValueError("outer") from error
    except ValueError as error:
        assert "KeyError: 'inner'" in page(error) and "ValueError: outer" in page(error)
        assert isinstance(innermost(error), KeyError)
