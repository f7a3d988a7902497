"""What an exception of a storage library says: which answer it holds, and whether the failure may
pass. Nothing here is for people: `storage_errors` and `address_errors` put it into words.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass

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
_UNREACHABLE = {
    "ConnectionError",
    "TimeoutError",
    "HTTPClientError",
    "ClientConnectionError",
    "gaierror",
    "Timeout",
    "TimeoutException",
    "TransportError",
    "ServiceRequestError",
}
"""Exception classes of Python, botocore, aiohttp, requests, httpx, google and azure for a service
that cannot be reached, or says nothing.
"""
_CUT_SHORT = {
    "ChunkedEncodingError",
    "ClientPayloadError",
    "IncompleteRead",
    "IncompleteReadError",
    "ProtocolError",
    "ResponseStreamingError",
}
"""Exception classes of requests, aiohttp, http.client, urllib3, botocore and azure for an answer
that ends too soon.
"""
_BUSY = {"SlowDown", "Throttling", "ThrottlingException", "TooManyRequests", "RequestTimeout"}
_ASKS_TO_WAIT = {408, 425, 429}
"""HTTP status of answers that ask to come again; so do those from 500 on, but 501."""


@dataclass(frozen=True)
class Answers:
    """What an exception and its causes say: the names of their classes and S3's error codes, the
    HTTP status or 0, and errno.
    """

    names: frozenset[str]
    status: int
    numbers: frozenset[int]

    def any_of(self, names: set[str]) -> bool:
        return bool(self.names & names)

    @property
    def may_pass(self) -> bool:
        """Whether the same request may succeed later."""
        if self.any_of(_UNREACHABLE | _BUSY | _CUT_SHORT) or self.numbers & _PASSING:
            return True
        return self.status in _ASKS_TO_WAIT or (self.status >= 500 and self.status != 501)


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
        told = [getattr(current, name, None) for name in ("status", "code", "status_code")]
        told.append(getattr(response, "status_code", None))
        status = status or next((number for number in told if isinstance(number, int)), 0)
        current = current.__cause__
    return Answers(frozenset(names), status, frozenset(numbers))


def was_cut_short(error: BaseException) -> bool:
    """Whether the body of an answer ended too soon."""
    return answers(error).any_of(_CUT_SHORT)
