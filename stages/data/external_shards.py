"""What external shards are called in an artifact: a shard is named after its source, so that a
file that joins or leaves between two attempts moves no other, and each source is used once.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import PurePosixPath

from pipeline.base.addresses import without_query

_LONGEST_STEM = 60


def shard_names(urls: Iterable[str]) -> dict[str, str]:
    """Map the shards' names in the artifact to their addresses.

    A name is the file's own and a hash of its address. A query is left out of it, for signatures
    change, except where addresses differ in nothing else.
    """
    urls = sorted(set(urls))
    plain = Counter(without_query(url) for url in urls)
    return {_name(url, url if plain[without_query(url)] > 1 else None): url for url in urls}


def _name(url: str, hashed: str | None) -> str:
    address = without_query(url)
    stem = re.sub(r"\.(tar(\.\w+)?|tgz)$", "", PurePosixPath(address).name)
    safe = re.sub(r"[^A-Za-z0-9_-]+", "_", stem)[:_LONGEST_STEM]
    digest = hashlib.sha256((hashed or address).encode(errors="backslashreplace")).hexdigest()
    return f"shards/external/{safe or 'shard'}-{digest[:10]}"
