"""What external shards are called in an artifact, and whether their sources have changed.

A shard is named after its source, so a file that joins, leaves or changes between two attempts
moves no other: each source is used once.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import PurePosixPath

import fsspec

_LONGEST_STEM = 60
_AT_ONCE = 16
_VERSIONS = (
    *("ETag", "etag", "md5Hash", "generation", "content_md5", "Content-MD5"),
    *("mtime", "LastModified", "Last-Modified", "created"),
)
"""What file systems call the version of a file's contents; the first that is there counts."""


def shard_names(urls: Iterable[str]) -> dict[str, str]:
    """Map the shards' names in the artifact to their addresses.

    A name is the file's own and a hash of its address. A query is left out of it, for signatures
    change, except where addresses differ in nothing else.
    """
    urls = sorted(set(urls))
    plain = Counter(_without_query(url) for url in urls)
    return {_name(url, url if plain[_without_query(url)] > 1 else None): url for url in urls}


def fingerprints(urls: list[str]) -> list[str]:
    """Return for each source what changes when its contents do: size, and version or time of the
    last change. Empty for a source that does not say.
    """
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        return list(pool.map(_fingerprint, urls))


def _fingerprint(url: str) -> str:
    try:
        filesystem, path = fsspec.core.url_to_fs(url)
        info = filesystem.info(path)
    except Exception:  # of any file system; whoever reads the shard says what is wrong
        return ""
    version = next((info[name] for name in _VERSIONS if info.get(name)), "")
    return f"{info.get('size')} {version}"


def _without_query(url: str) -> str:
    """Return an address without query and fragment. Only HTTP has them; elsewhere ? and # are
    letters of a name.
    """
    return re.sub(r"[?#].*", "", url) if re.search(r"(^|::)https?://", url) else url


def _name(url: str, hashed: str | None) -> str:
    address = _without_query(url)
    stem = re.sub(r"\.(tar(\.\w+)?|tgz)$", "", PurePosixPath(address).name)
    safe = re.sub(r"[^A-Za-z0-9_-]+", "_", stem)[:_LONGEST_STEM]
    digest = hashlib.sha256((hashed or address).encode(errors="backslashreplace")).hexdigest()
    return f"shards/external/{safe or 'shard'}-{digest[:10]}"
