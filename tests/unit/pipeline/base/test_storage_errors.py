"""Whatever storage raises becomes one sentence with the store, the file and the fix."""

from __future__ import annotations

import errno
import ssl

import botocore.exceptions as boto
import pytest
from aiohttp import ClientPayloadError

from pipeline.base.storage_errors import explained
from schemas.errors import ArtifactError, ConfigError, LaddError, ServiceUnavailable


def told(error: Exception, verb: str = "write") -> LaddError:
    with pytest.raises(LaddError) as found, explained("s3://b/p", verb, "a.bin"):
        raise error
    text = str(found.value)
    assert text.startswith(f"store s3://b/p: cannot {verb} a.bin: ") and "\n" not in text
    return found.value


def answer(code: str, status: int) -> Exception:
    """As s3fs passes it on."""
    from s3fs.errors import translate_boto_error

    content = {
        "Error": {"Code": code, "Message": f"the service says {code}"},
        "ResponseMetadata": {"HTTPStatusCode": status},
    }
    return translate_boto_error(boto.ClientError(content, "PutObject"))


@pytest.mark.parametrize(
    ("code", "status", "kind", "words"),
    [
        ("ExpiredToken", 400, ArtifactError, "credentials have expired; sign in again"),
        ("InvalidAccessKeyId", 403, ArtifactError, "does not accept these keys"),
        ("SignatureDoesNotMatch", 403, ArtifactError, "does not accept these keys"),
        ("RequestTimeTooSkewed", 403, ArtifactError, "clock is wrong"),
        ("AccessDenied", 403, ArtifactError, "no permission"),
        ("403", 403, ArtifactError, "no permission"),
        ("NoSuchBucket", 404, ArtifactError, "no such bucket or folder; create it"),
        ("PermanentRedirect", 301, ArtifactError, "AWS_DEFAULT_REGION"),
        ("301", 301, ArtifactError, "AWS_DEFAULT_REGION"),
        ("AuthorizationHeaderMalformed", 400, ArtifactError, "AWS_DEFAULT_REGION"),
        ("InvalidBucketName", 400, ConfigError, "correct `store`"),
        ("SlowDown", 503, ServiceUnavailable, "run the same command again"),
        ("InternalError", 500, ServiceUnavailable, "run the same command again"),
        ("TooManyRequests", 429, ServiceUnavailable, "run the same command again"),
        ("QuotaExceeded", 507, ServiceUnavailable, "the service says QuotaExceeded"),
        ("NotImplemented", 501, ArtifactError, "the service says NotImplemented"),
    ],
)
def test_answers_of_a_service(code, status, kind, words):
    error = told(answer(code, status))
    assert type(error) is kind and words in str(error)


@pytest.mark.parametrize(
    ("raised", "kind", "words"),
    [
        (boto.NoCredentialsError(), ArtifactError, "AWS_ACCESS_KEY_ID"),
        (
            boto.PartialCredentialsError(provider="env", cred_var="x"),
            ArtifactError,
            "FSSPEC_S3_KEY",
        ),
        (boto.ProfileNotFound(profile="x"), ArtifactError, "no credentials were found"),
        (boto.UnauthorizedSSOTokenError(), ArtifactError, "aws sso login"),
        (boto.SSLError(endpoint_url="https://x", error="e"), ArtifactError, "AWS_CA_BUNDLE"),
        (ssl.SSLCertVerificationError("self-signed"), ArtifactError, "not trusted"),
        (boto.EndpointConnectionError(endpoint_url="https://x"), ServiceUnavailable, "endpoint"),
        (boto.ParamValidationError(report="Invalid bucket name"), ConfigError, "correct `store`"),
        (ValueError("Invalid endpoint: x y"), ConfigError, "Invalid endpoint"),
        (OSError(errno.ENOSPC, "No space left"), ArtifactError, "the disk is full"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), ArtifactError, "quota is used up"),
        (OSError(errno.EROFS, "Read-only"), ArtifactError, "read-only; mount it writable"),
        (OSError(errno.ENAMETOOLONG, "long"), ConfigError, "shorter"),
        (ClientPayloadError("not completed"), ServiceUnavailable, "run the same command again"),
        (OSError(errno.ESTALE, "Stale file handle"), ServiceUnavailable, "Stale file handle"),
        (RuntimeError("a driver's own\nstory"), ArtifactError, "a driver's own story"),
        (KeyError("x"), ArtifactError, "'x'"),
    ],
)
def test_what_libraries_and_the_system_raise(raised, kind, words):
    error = told(raised)
    assert type(error) is kind and words in str(error)


def test_a_name_that_cannot_be_resolved_may_pass():
    import socket

    error = told(OSError("outer"))
    assert type(error) is ArtifactError
    outer = RuntimeError("cannot connect")
    outer.__cause__ = socket.gaierror(-2, "Name or service not known")
    assert type(told(outer)) is ServiceUnavailable


@pytest.mark.parametrize("raised", [FileExistsError("there"), ConfigError("ours")])
def test_answers_and_our_own_errors_pass(raised):
    with pytest.raises(type(raised)) as found, explained("s3://b/p", "write", "a.bin"):
        raise raised
    assert found.value is raised


def test_a_copy_that_has_no_room_is_the_temporary_folders_fault():
    text = str(told(OSError(errno.ENOSPC, "No space left"), "read"))
    assert "the temporary folder" in text and "TMPDIR" in text
