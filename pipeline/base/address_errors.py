"""Exceptions of the libraries that read outside files, in words: which kind of failure it is, and
how to fix it.
"""

from __future__ import annotations

import errno
import lzma
import zlib
from typing import Any

from schemas.errors import ArtifactError, ConfigError, LaddError, ServiceUnavailable, text_of

_STORAGE = {
    *("aiohttp", "botocore", "aiobotocore", "s3fs", "fsspec", "gcsfs", "google", "adlfs", "azure"),
    *("yarl", "urllib3", "requests", "httpx", "huggingface_hub", "ssl", "socket"),
}
"""Packages whose exceptions come from a file system or a service."""
_PASSING = {errno.EIO, errno.EBUSY, errno.EAGAIN, errno.ENETUNREACH, errno.ETIMEDOUT}
_PASSING |= {getattr(errno, "EREMOTEIO", errno.EIO)}  # only Linux has it
_PASSING_KINDS = {
    *("ConnectionError", "TimeoutError", "ServerTimeoutError"),
    *("HTTPClientError", "ClientConnectionError", "ClientPayloadError", "IncompleteReadError"),
}
_DAMAGED = (EOFError, zlib.error, lzma.LZMAError)


def explain(error: Exception, field: str, what: str, *, opening: bool) -> LaddError | None:
    """Return the failure of an outside file in one sentence, or None if it is not a known one.

    `opening` says that only the file's address was looked at so far: then a ValueError is about the
    address, and not about what is done with the contents.
    """
    cause = _told_by(error)
    status, kinds = _status_of(cause), {kind.__name__ for kind in type(cause).__mro__}
    if any("Credential" in kind or "TokenRetrieval" in kind for kind in kinds):
        return ConfigError(
            f"{field}: there are no credentials to read {what}; set them in the environment (for "
            "S3 AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or FSSPEC_S3_ANON=true for a public "
            "bucket)"
        )
    if status in (404, 410) or isinstance(cause, (FileNotFoundError, NotADirectoryError)):
        return ConfigError(f"{field}: there is no file {what}")
    if status in (400, 401, 403, 407) or isinstance(cause, PermissionError):
        return ConfigError(
            f"{field}: no permission to read {what}{_answer(status)}; check the file's permissions "
            "or the credentials, and whether a signed address has expired"
        )
    if _may_pass(cause, status, kinds):
        return ServiceUnavailable(
            f"{field}: {what} does not answer at the moment ({_brief(cause)}); check the address "
            "and the network, and run it again"
        )
    package = type(cause).__module__.split(".")[0]
    # Decompressors raise an OSError that has no number, which those of the system have.
    unpacking = isinstance(cause, OSError) and cause.errno is None and not opening
    if isinstance(cause, _DAMAGED) or package == "pyarrow" or unpacking:
        return ArtifactError(
            f"{field}: {what} is damaged or cut short ({_brief(cause)}); copy it again"
        )
    if isinstance(cause, ImportError):
        return ConfigError(f"{field}: {what} needs a package that is missing: {_brief(cause)}")
    if isinstance(cause, OSError) or package in _STORAGE or (opening and _is_about_names(cause)):
        return ConfigError(f"{field}: {what} cannot be opened: {_brief(cause)}; fix the address")
    return None


def _told_by(error: Exception) -> Exception:
    """Return the exception that tells the most: fsspec raises FileNotFoundError for every answer of
    a web server, and names the answer as its cause.
    """
    cause = error.__cause__
    if isinstance(error, FileNotFoundError) and isinstance(cause, Exception):
        return _told_by(cause)
    return error


def _status_of(error: Any) -> int | None:
    """Return the status of the answer that an exception of a web library holds."""
    response = getattr(error, "response", None)
    if isinstance(response, dict):
        status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    else:
        told = (getattr(error, name, None) for name in ("status", "code"))
        status = next(filter(None, told), getattr(response, "status_code", None))
    return int(status) if str(status).isdigit() else None


def _may_pass(error: Exception, status: int | None, kinds: set[str]) -> bool:
    if status is not None:
        return status in (408, 425, 429) or (500 <= status < 600 and status != 501)
    return bool(kinds & _PASSING_KINDS) or getattr(error, "errno", None) in _PASSING


def _is_about_names(error: Exception) -> bool:
    """ValueError for an unknown protocol; a file system in memory raises KeyError."""
    return isinstance(error, (ValueError, KeyError, TypeError, NotImplementedError))


def _answer(status: int | None) -> str:
    return f" (the server answers {status})" if status else ""


def _brief(error: Exception) -> str:
    return text_of(error).rstrip(".")[:300] or type(error).__name__
