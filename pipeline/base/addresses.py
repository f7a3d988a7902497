"""Outside files by address: local paths, fsspec URLs, signed web addresses, globs, braces, folders.

Every file that is not ours (prompts, pairs, external shards) is named and opened here, so that each
failure of a file system or a service becomes one sentence with the configuration's field, the
address without its secrets, and the fix:

    for address in expand(["s3://bucket/{000..012}.tar"], "encode.external", (".tar",)):
        with copied(address, "encode.external") as path: ...      # a path on this machine
        with opened(address, "encode.external") as file: ...      # or a stream of its bytes

An address that `expand` returns is an absolute local path, or a URL as it was given.
"""

from __future__ import annotations

import contextlib
import glob
import os
import posixpath
import re
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from math import prod
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any
from urllib.parse import urlsplit

from pipeline.base.address_errors import explain
from pipeline.base.on_objects import fetch
from pipeline.base.scratch import scratch_prefix
from schemas.errors import ConfigError, LaddError

if TYPE_CHECKING:
    import fsspec

MOST_FILES = 100_000
"""Names that one pattern with braces may stand for."""
_AT_ONCE = 16
"""Remote files whose existence is asked for at the same time."""
_QUERY = re.compile(r"\?[\w.-]+=")
_LEGAL = re.compile(r"[!#-;=?-Z_a-z~\[\]]+\Z")
_SECRET = re.compile(r"(\w+://[^\s'\"?]+)\?[^\s'\")\]}]+")


def expand(patterns: Sequence[str], field: str, endings: Sequence[str] = ()) -> list[str]:
    """Resolve paths, URLs, globs (`*`, `?`, `[…]`), braces (`{000..012}`, `{a,b}`) and folders to
    the addresses of their files, sorted, each once. A file that is there under the very name wins
    over a pattern. Globs leave out names that begin with a dot (`._x.tar` of macOS); of a folder
    those with one of `endings` are taken, but for names that begin with `.` or `_`.

    Raises ConfigError, naming the field, for what names no file or cannot be reached.
    """
    found: set[str] = set()
    plain: list[str] = []
    for pattern in patterns:
        if not pattern.strip():
            raise ConfigError(f"{field}: an address is empty")
        for one in _without_braces(pattern, field):
            if _has_magic(one):
                found.update(_matches(one, field))
            else:
                plain.append(one)
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        for files in pool.map(lambda one: _files_at(one, field, endings), plain):
            found.update(files)
    if not found:
        raise ConfigError(f"{field} names no files")
    return sorted(found)


@contextlib.contextmanager
def opened(address: str, field: str) -> Iterator[IO[bytes]]:
    """Open a file to read its bytes. Failures while it is open are explained too: do nothing but
    read it there.
    """
    with contextlib.ExitStack() as stack:
        with explained(address, field, opening=True):
            file: Any = open(local_path(address), "rb") if is_local(address) else _open(address)  # noqa: SIM115
            stack.enter_context(file)
        with explained(address, field):
            yield file


@contextlib.contextmanager
def copied(address: str, field: str) -> Iterator[Path]:
    """Give a local path of the file: the file itself, or a temporary copy of a remote one."""
    if is_local(address):
        with opened(address, field):
            pass
        with explained(address, field):
            yield Path(local_path(address))
        return
    with tempfile.TemporaryDirectory(prefix=scratch_prefix("outside")) as scratch:
        copy = Path(scratch) / (posixpath.basename(without_query(address)) or "file")
        with explained(address, field, opening=True):
            filesystem, path = filesystem_of(address)
            fetch(filesystem, path, copy)
        with explained(address, field):
            yield copy


@contextlib.contextmanager
def explained(address: str, field: str, *, opening: bool = False) -> Iterator[None]:
    """Turn the failures of file systems, services, decompressors and Arrow into one sentence:
    ConfigError for a wrong address or missing credentials, ArtifactError for a damaged file,
    ServiceUnavailable for what may pass. What is none of these is raised as it is.
    """
    try:
        yield
    except LaddError:
        raise
    except Exception as error:
        told = explain(error, field, shown(address), opening=opening)
        if told is None:
            raise
        raise type(told)(
            _SECRET.sub(r"\1?…", str(told).replace(address, shown(address)))
        ) from error


def is_local(address: str) -> bool:
    """Whether the address is a path of this machine."""
    return "://" not in address or address.startswith(("file://", "local://"))


def local_path(address: str) -> str:
    """Return the absolute path of a local address."""
    return os.path.abspath(os.path.expanduser(re.sub(r"\A(file|local)://", "", address)))


def shown(address: str) -> str:
    """Return the address as it may be shown and recorded: without password and signature."""
    if is_local(address):
        return local_path(address) if "://" in address else address
    name = without_query(address)
    bare = re.sub(r"(\w+://)[^/?@]*@", r"\1", name)
    return bare if name == address else f"{bare}?…"


def without_query(address: str) -> str:
    """Return the address up to its query, whose `?` is no part of a name. Elsewhere than on the web
    a `?` is one of a glob, unless what follows reads like a query.
    """
    if is_local(address):
        return address
    query = re.search(r"\?", address) if _is_web(address) else _QUERY.search(address)
    return address[: query.start()] if query else address


def _is_web(address: str) -> bool:
    return address.startswith(("http://", "https://"))


def filesystem_of(address: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """Return the fsspec file system of an address, and the path in it. Call it, and what it
    returns, within `explained(…, opening=True)`.
    """
    import fsspec

    options: dict[str, Any] = {}
    if _is_web(address):
        import aiohttp

        # A shard may take longer than aiohttp's five minutes, if only its bytes keep coming.
        waits = aiohttp.ClientTimeout(total=None, sock_connect=30, sock_read=60)
        # Quoting a signed address once more would break its signature.
        options = {"client_kwargs": {"timeout": waits}, "encoded": bool(_LEGAL.match(address))}
    filesystem, path = fsspec.core.url_to_fs(address, **options)
    return filesystem, path


def _open(address: str) -> Any:
    filesystem, path = filesystem_of(address)
    how = {}
    if _is_web(address) and not filesystem.info(path).get("partial"):
        how = {"block_size": 0}  # a plain stream: this server does not give parts of a file
    return filesystem.open(path, "rb", **how)


def _without_braces(pattern: str, field: str) -> Iterable[str]:
    """Expand `{000..012}` and `{a,b}` in the part of the pattern that is a name."""
    name = without_query(pattern)
    if "{" not in name or (is_local(pattern) and os.path.exists(local_path(pattern))):
        return [pattern]
    from braceexpand import braceexpand

    # A range is spelled out at once: look at its ends before.
    ranges = re.findall(r"\{(-?\d{1,18})\.\.(-?\d{1,18})[.}]", name)
    count = prod(abs(int(first) - int(last)) + 1 for first, last in ranges)
    try:
        names = (
            list(islice(braceexpand(name, escape=False), MOST_FILES + 1))
            if count <= MOST_FILES
            else []
        )
    except ValueError as error:
        raise ConfigError(
            f"{field}: a brace of {shown(pattern)} has no partner; write "
            "{00000..00012} or {a,b}"
        ) from error
    if not 0 < len(names) <= MOST_FILES:
        raise ConfigError(
            f"{field}: the braces of {shown(pattern)} stand for more than {MOST_FILES:,} files"
        )
    return [one + pattern[len(name) :] for one in names]


def _has_magic(address: str) -> bool:
    """Whether an address is a glob: not the `?` of a web address, nor a local file of this name."""
    if is_local(address):
        path = local_path(address)
        return glob.has_magic(path) and not os.path.lexists(path)
    name = without_query(address)
    if _is_web(name):
        return any(mark in urlsplit(name).path for mark in "*[")
    return glob.has_magic(name)


def _matches(pattern: str, field: str) -> list[str]:
    with explained(pattern, field, opening=True):
        if is_local(pattern):
            paths = glob.iglob(local_path(pattern), recursive=True)
            found = [path for path in paths if os.path.isfile(path)]
        else:
            filesystem, path = filesystem_of(pattern)
            entries = filesystem.glob(path, detail=True)
            found = [
                filesystem.unstrip_protocol(name)
                for name, entry in entries.items()
                if entry.get("type") != "directory"
            ]
            if not found and filesystem.exists(path):
                found = [pattern]
    hidden = posixpath.basename(pattern).startswith(".")
    kept = [one for one in found if hidden or not posixpath.basename(one).startswith(".")]
    if not kept:
        raise ConfigError(f"{field}: nothing matches the pattern {shown(pattern)}")
    return kept


def _files_at(address: str, field: str, endings: Sequence[str]) -> list[str]:
    """Return the file at an address, or the files of the folder at it."""
    if is_local(address):
        return _local_files(local_path(address), address, field, endings)
    with explained(address, field, opening=True):
        filesystem, path = filesystem_of(address)
        if _is_web(address):
            if urlsplit(address).path.endswith("/"):
                raise ConfigError(
                    f"{field}: {shown(address)} is the page of a folder; name its files, such as "
                    f"{without_query(address)}{{00000..00012}}{endings[0] if endings else ''}"
                )
            # `info` asks for the first bytes where HEAD is not allowed, as for signed addresses.
            kind = str(filesystem.info(path).get("mimetype") or "")
            if kind.startswith("text/html") and not address.endswith((".html", ".htm")):
                raise ConfigError(
                    f"{field}: {shown(address)} answers with a web page instead of a file; is it a "
                    "folder, or does it ask for a login?"
                )
            return [address]
        if filesystem.info(path)["type"] != "directory":
            return [address]
        names = [e["name"] for e in filesystem.ls(path, detail=True) if e["type"] == "file"]
        files = [filesystem.unstrip_protocol(name) for name in names]
    return _of_folder(files, address, field, endings)


def _local_files(path: str, given: str, field: str, endings: Sequence[str]) -> list[str]:
    if os.path.isdir(path):
        with explained(path, field, opening=True):
            files = [entry.path for entry in os.scandir(path) if entry.is_file()]
        return _of_folder(files, given, field, endings)
    if not os.path.exists(path):
        if os.path.islink(path):
            raise ConfigError(
                f"{field}: {given} is a link to {os.readlink(path)}, which does not exist"
            )
        raise ConfigError(f"{field}: there is no file {given}")
    if not os.path.isfile(path):
        raise ConfigError(f"{field}: {given} is no regular file; it is read more than once")
    return [path]


def _of_folder(files: list[str], folder: str, field: str, endings: Sequence[str]) -> list[str]:
    wanted = [one for one in files if one.lower().endswith(tuple(endings))]
    kept = [one for one in wanted if not posixpath.basename(one).startswith((".", "_"))]
    if not kept:
        raise ConfigError(
            f"{field}: the folder {shown(folder)} holds no file that ends in "
            f"{', '.join(endings) or 'anything'}"
        )
    return kept
