"""What the failures of storage mean to the user: one sentence that names the store, the file and
the fix, for whatever fsspec, botocore, aiohttp or the operating system raises.
"""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass

from schemas.errors import ArtifactError, ConfigError, LaddError, ServiceUnavailable, text_of

_LONGEST = 300
"""Characters of what a driver says."""
_PASSING = {
    errno.EIO,
    errno.EBUSY,
    errno.EAGAIN,
    errno.ESTALE,
    errno.ENETDOWN,
    errno.ENETUNREACH,
    errno.EHOSTUNREACH,
    errno.EHOSTDOWN,
    getattr(errno, "EREMOTEIO", errno.EIO),  # only Linux has it
}
"""errno of failures that may pass: what s3fs makes of answers like SlowDown, or no network."""
_ELSEWHERE = getattr(errno, "EREMCHG", errno.ESTALE)
"""What s3fs makes of a redirect to another region."""

_UNREACHABLE = {
    "ConnectionError",
    "TimeoutError",
    "HTTPClientError",
    "ClientConnectionError",
    "gaierror",
    "TransportError",
    "ServiceRequestError",
}
"""Exception classes of Python, botocore, aiohttp, google and azure for failures that may pass."""
_CUT_SHORT = {
    "ClientPayloadError",
    "IncompleteRead",
    "IncompleteReadError",
    "ProtocolError",
    "ResponseStreamingError",
}
"""Exception classes of aiohttp, http.client, urllib3, botocore and azure for an answer that ends
too soon.
"""
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
_BUSY = {"SlowDown", "Throttling", "ThrottlingException", "TooManyRequests", "RequestTimeout"}
_WRONG_URL = {"ParamValidationError", "InvalidBucketName", "InvalidURL", "InvalidRegionError"}


@dataclass(frozen=True)
class Answers:
    """What an exception and its causes say: the names of their classes, S3's error codes, the HTTP
    status, and errno.
    """

    names: frozenset[str]
    status: int
    numbers: frozenset[int]

    def any_of(self, names: set[str]) -> bool:
        return bool(self.names & names)


def answers(error: BaseException) -> Answers:
    """Collect what is known of a failure. Only stated causes count: what else was being handled
    may be another story.
    """
    names: set[str] = set()
    numbers: set[int] = set()
    status = 0
    current: BaseException | None = error
    while current is not None:
        names |= {kind.__name__ for kind in type(current).__mro__}
        if isinstance(current, OSError) and isinstance(current.errno, int):
            numbers.add(current.errno)
        response = getattr(current, "response", None)
        if isinstance(response, dict):
            names.add(str(response.get("Error", {}).get("Code")))
            metadata = response.get("ResponseMetadata", {})
            status = status or int(metadata.get("HTTPStatusCode") or 0)
        code = getattr(current, "code", None)  # gcsfs
        status = status or (code if isinstance(code, int) else 0)
        current = current.__cause__
    return Answers(frozenset(names), status, frozenset(numbers))


def was_cut_short(error: BaseException) -> bool:
    """Whether the body of an answer ended too soon."""
    return answers(error).any_of(_CUT_SHORT)


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
    may_pass = found.any_of(_UNREACHABLE | _BUSY | _CUT_SHORT) or found.numbers & _PASSING
    if may_pass or found.status == 429 or (found.status >= 500 and found.status != 501):
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
