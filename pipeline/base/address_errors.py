"""Exceptions of the libraries that read outside files, in words: which kind of failure it is, and
how to fix it.
"""

from __future__ import annotations

import lzma
import zlib

from pipeline.base.answers import answers
from schemas.errors import ArtifactError, ConfigError, LaddError, ServiceUnavailable, text_of

_STORAGE = {
    *("aiohttp", "botocore", "aiobotocore", "s3fs", "fsspec", "gcsfs", "google", "adlfs", "azure"),
    *("yarl", "urllib3", "requests", "httpx", "huggingface_hub", "ssl", "socket"),
}
"""Packages whose exceptions come from a file system or a service."""
_DAMAGED = (EOFError, zlib.error, lzma.LZMAError)


def explain(error: Exception, field: str, what: str, *, opening: bool) -> LaddError | None:
    """Return the failure of an outside file in one sentence, or None if it is not a known one.

    `opening` says that only the file's address was looked at so far: then a ValueError is about the
    address, and not about what is done with the contents.
    """
    cause = _told_by(error)
    found = answers(cause)
    status = found.status
    if any("Credential" in name or "TokenRetrieval" in name for name in found.names):
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
    if found.may_pass:
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


def _is_about_names(error: Exception) -> bool:
    """ValueError for an unknown protocol; a file system in memory raises KeyError."""
    return isinstance(error, (ValueError, KeyError, TypeError, NotImplementedError))


def _answer(status: int) -> str:
    return f" (the server answers {status})" if status else ""


def _brief(error: Exception) -> str:
    return text_of(error).rstrip(".")[:300] or type(error).__name__
