"""What the failures of storage mean to the user: one sentence that names the store, the file and
the fix, for whatever fsspec, botocore, aiohttp or the operating system raises.
"""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
from collections.abc import Iterator

from pipeline.base.answers import Answers, answers
from schemas.errors import ArtifactError, ConfigError, LaddError, ServiceUnavailable, text_of

_LONGEST = 300
"""Characters of what a driver says."""
_ELSEWHERE = getattr(errno, "EREMCHG", errno.ESTALE)
"""What s3fs makes of a redirect to another region."""

_NO_CREDENTIALS = {
    "NoCredentialsError",
    "PartialCredentialsError",
    "CredentialRetrievalError",
    "MetadataRetrievalError",
    "ProfileNotFound",
    "ConfigNotFound",
    "NoAuthTokenError",
    "DefaultCredentialsError",
    "ClientAuthenticationError",
}
_EXPIRED = {
    "TokenRetrievalError",
    "SSOError",
    "RefreshError",
    "LoginRefreshRequired",
    "ExpiredToken",
    "ExpiredTokenException",
    "InvalidToken",
    "TokenRefreshRequired",
}
_UNKNOWN_KEYS = {"InvalidAccessKeyId", "SignatureDoesNotMatch", "UnrecognizedClientException"}
_OTHER_REGION = {
    "PermanentRedirect",
    "TemporaryRedirect",
    "AuthorizationHeaderMalformed",
    "IllegalLocationConstraintException",
    "301",
    "307",
}
_CERTIFICATE = {"SSLError", "SSLCertVerificationError", "ClientSSLError", "CertificateError"}
_WRONG_URL = {"ParamValidationError", "InvalidBucketName", "InvalidURL", "InvalidRegionError"}


@contextlib.contextmanager
def explained(url: str, verb: str, name: str) -> Iterator[None]:
    """Turn whatever storage raises into one sentence that names the store and the fix:
    ServiceUnavailable for failures that may pass, ConfigError for a URL that cannot be used, else
    ArtifactError. FileExistsError passes: it is an answer.
    """
    try:
        yield
    except (FileExistsError, LaddError, AssertionError):
        raise
    except Exception as error:
        found, text = answers(error), text_of(error)[:_LONGEST]
        told = (
            _of_a_disk(url, verb, name, found)
            or _of_an_account(url, verb, name, found)
            or _of_a_service(url, verb, name, found, text)
        )
        if told is not None:
            raise told from error
        raise ArtifactError(
            f"store {url}: cannot {verb} {name}: the system or the driver says: {text}"
        ) from error


@contextlib.contextmanager
def scratch_explained() -> Iterator[None]:
    """Turn a failure to write temporary files into one sentence."""
    try:
        yield
    except OSError as error:
        raise ArtifactError(
            f"the temporary folder {_scratch()} cannot be written ({error.strerror or error}); "
            "free some space there, or set TMPDIR to another folder"
        ) from error


def _scratch() -> str:
    try:
        return tempfile.gettempdir()
    except FileNotFoundError:  # it has tried several, and none can be written
        return os.environ.get("TMPDIR", "/tmp")


def _of_a_disk(url: str, verb: str, name: str, found: Answers) -> LaddError | None:
    numbers = found.numbers
    if verb == "read" and numbers & {errno.ENOSPC, errno.EDQUOT}:
        return ArtifactError(
            f"store {url}: cannot {verb} {name}: the temporary folder {_scratch()} has no room for "
            "a copy; free some space there, or set TMPDIR to another folder"
        )
    if errno.ENOSPC in numbers:
        return ArtifactError(
            f"store {url}: cannot {verb} {name}: the disk is full; free some space there "
            "(`ladd-pipeline artifacts gc` lists what is not used), or set another store"
        )
    if errno.EDQUOT in numbers:
        return ArtifactError(
            f"store {url}: cannot {verb} {name}: your disk quota is used up; free some space there "
            "(`ladd-pipeline artifacts gc` lists what is not used), or set another store"
        )
    if errno.EROFS in numbers:
        return ArtifactError(
            f"store {url}: cannot {verb} {name}: the file system is read-only; mount it writable, "
            "or set another store"
        )
    if errno.ENAMETOOLONG in numbers:
        return ConfigError(
            f"store {url}: cannot {verb} {name}: the path is too long; set a store with a shorter "
            "one"
        )
    return None


def _of_an_account(url: str, verb: str, name: str, found: Answers) -> LaddError | None:
    if found.any_of(_NO_CREDENTIALS):
        return ArtifactError(
            f"store {url}: cannot {verb} {name}: no credentials were found for it; set them in the "
            "environment (for S3 AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or FSSPEC_S3_KEY and "
            "FSSPEC_S3_SECRET), or give the machine a role"
        )
    if found.any_of(_EXPIRED):
        return ArtifactError(
            f"store {url}: cannot {verb} {name}: its credentials have expired; sign in again "
            "(for example with `aws sso login`) and run the same command"
        )
    if found.any_of(_UNKNOWN_KEYS):
        return ArtifactError(
            f"store {url}: cannot {verb} {name}: the service does not accept these keys; check "
            "key, secret and endpoint: they belong together"
        )
    if "RequestTimeTooSkewed" in found.names:
        return ArtifactError(
            f"store {url}: cannot {verb} {name}: this machine's clock is wrong, so the service "
            "refuses its signatures; set the clock"
        )
    if found.any_of(_OTHER_REGION) or _ELSEWHERE in found.numbers:
        return ArtifactError(
            f"store {url}: cannot {verb} {name}: the bucket is in another region or behind another "
            "endpoint; set AWS_DEFAULT_REGION or AWS_ENDPOINT_URL to the bucket's own"
        )
    if found.any_of({"PermissionError"}) or found.status in (401, 403):
        return ArtifactError(
            f"store {url}: cannot {verb} {name}: no permission; check the folder's permissions, or "
            "what the credentials may do there"
        )
    return None


def _of_a_service(url: str, verb: str, name: str, found: Answers, text: str) -> LaddError | None:
    if found.any_of(_CERTIFICATE):
        return ArtifactError(
            f"store {url}: cannot {verb} {name}: the certificate of its endpoint is not trusted; "
            "check the endpoint, or name your own authority in AWS_CA_BUNDLE"
        )
    if found.any_of({"FileNotFoundError", "NoSuchBucket"}):
        return ArtifactError(
            f"store {url}: cannot {verb} {name}: there is no such bucket or folder; create it, or "
            "correct `store`"
        )
    if found.may_pass:
        return ServiceUnavailable(
            f"store {url}: cannot {verb} {name}: the service or disk does not answer as it should "
            f"({text}); run the same command again, and check endpoint and network if that recurs"
        )
    if found.any_of(_WRONG_URL | {"ValueError", "TypeError"}):
        return ConfigError(
            f"store {url}: cannot {verb} {name}: its URL or its settings cannot be used ({text}); "
            "correct `store`, or the endpoint and FSSPEC_ settings in the environment"
        )
    return None
