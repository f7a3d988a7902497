"""Addresses without what is secret in them: as they are recorded, and as they enter keys.

A signed address says for a while who may read a file: the signature is a secret until it expires,
and tells nothing of the file.
"""

from __future__ import annotations

import re
from typing import Any

_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^\s'\"<>|\\^`]+")
_USER = re.compile(r"(://)[^/?#@]*@")
_QUERY = re.compile(r"\?(?=[\w.~%-]+=)")
_SECRET = re.compile(
    r"x-(amz|goog|oss|cos|obs|ms|bce)-.*|(aws|google|oss|q-?)?-?access-?(key)?-?id|"
    r"(q-)?sign(ature)?|q-(ak|key-time|sign-.*|header-list|url-param-list)|hmac|hdn\w+|"
    r"expires|policy|key-pair-id|(.*[-_])?(token|secret|password|passwd|pwd|signature|api-?key|"
    r"credential|auth|authorization|jwt|access_key|key_id|key|code)",
    re.IGNORECASE,
)
"""Names in a query that hold a signature or a key, or say how long it holds."""
_SHARED = re.compile(r"s[a-z]{1,2}|sk(oid|tid|t|e|s|v)|sdd|scid|ses|spr|srt|sip", re.IGNORECASE)
"""Names beside `sig` in an address that Azure has signed."""


def public(address: str) -> str:
    """Return an address without user, password and signature. A path, or an address that has none
    of these, is returned as it is.
    """
    if "://" not in address:
        return address
    address = _USER.sub(r"\1", address, count=1)
    query = _QUERY.search(address)
    if query is None:
        return address
    parts = [part for part in address[query.end() :].split("&") if part]
    names = [part.partition("=")[0] for part in parts]
    is_shared = any(name.lower() == "sig" for name in names)
    kept = [
        part
        for part, name in zip(parts, names, strict=True)
        if not (_SECRET.fullmatch(name) or (is_shared and _SHARED.fullmatch(name)))
    ]
    if len(kept) == len(parts):
        return address
    return address[: query.start()] + (f"?{'&'.join(kept)}" if kept else "")


def public_text(text: str) -> str:
    """Return a text, such as a traceback, in which each address is `public`."""
    return _ADDRESS.sub(lambda found: public(found[0]), text) if "://" in text else text


def public_content(content: Any) -> Any:
    """Return JSON content in which each address is `public`."""
    if isinstance(content, str):
        return public_text(content)
    if isinstance(content, dict):
        return {key: public_content(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [public_content(value) for value in content]
    return content
