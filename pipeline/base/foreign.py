"""Exceptions of other libraries in one sentence. Imports none of these libraries."""

from __future__ import annotations

import errno
import traceback

from schemas.addresses import public_text
from schemas.errors import LaddError

_LOST = {
    "WorkerCrashedError": "its process was killed or crashed",
    "OutOfMemoryError": "its process was ended because the machine was short of memory",
    "NodeDiedError": "its node was lost",
    "LocalRayletDiedError": "Ray's own process on its node has ended",
    "ActorDiedError": "a process that it works with was killed or crashed",
    "ActorUnavailableError": "a process that it works with does not answer",
    "RayActorError": "a process that it works with has ended",
    "OwnerDiedError": "a process that it works with was killed or crashed",
    "ObjectLostError": "a result was lost with the process that held it",
    "RpcError": "the cluster does not answer",
    "RuntimeEnvSetupError": "its process could not be started",
}
"""Ray's exceptions for processes that have ended, and what they say in our words."""
_ERRNO = {
    errno.ENOSPC: "there is no space left; free some, or use another folder",
    errno.EDQUOT: "the quota of the disk is used up; free some space, or use another folder",
    errno.EMFILE: "too many files are open; allow more with `ulimit -n`",
    errno.EROFS: "the file system can only be read; use another folder",
    errno.EACCES: "permission denied; change its permissions, or use another folder",
    errno.EPERM: "the operation is not permitted; change its permissions, or use another folder",
    errno.ENOENT: "there is no such file or folder; has it been moved or deleted?",
    errno.EIO: "the disk reports an error; use another one",
}


def loss(error: BaseException) -> str:
    """Return what was lost if Ray says by this error that a process has ended, else an empty
    text.
    """
    for kind in type(error).__mro__:
        if kind.__module__.startswith("ray.") and kind.__name__ in _LOST:
            return _LOST[kind.__name__]
    return ""


def innermost(error: BaseException) -> BaseException:
    """Return what the error of a remote task or of a failed training was at first."""
    seen: list[BaseException] = []
    queue: list[BaseException | None] = [error]
    while queue:
        current = queue.pop(0)
        if current is None or current in seen:
            continue
        seen.append(current)
        if isinstance(current, LaddError):
            return current
        queue += [getattr(current, "cause", None), getattr(current, "controller_failure", None)]
        queue += [current.__cause__, current.__context__]
        queue += list(getattr(current, "worker_failures", {}).values())
    return seen[-1]


def sentence(error: BaseException) -> str:
    """Return what happened, and the fix where it is known, in one line."""
    if isinstance(error, LaddError):
        return str(error)
    if lost := loss(error):
        return lost
    if isinstance(error, OSError) and error.errno in _ERRNO:
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{_ERRNO[error.errno]}"
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return "out of memory; use smaller batches (micro_batch) or fewer workers"
    if isinstance(error, ModuleNotFoundError) and error.name:
        package = error.name.split(".")[0]
        return f"the Python package {package} is missing; `pip install {package}`"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = lines[-1 if hasattr(error, "cause") else 0][:300] if lines else ""
    return public_text(f"{type(error).__name__}: {said}".removesuffix(": "))


def page(error: BaseException) -> str:
    """Return the traceback with all causes, for the run's record, without what is secret in
    addresses: libraries print them as they are.
    """
    return public_text("".join(traceback.format_exception(error)))
