"""What this machine gives a process: CPUs, memory, shared memory, folders that it may write to."""

from __future__ import annotations

import os
import pwd
import secrets
import tempfile
from collections.abc import Iterator, MutableMapping
from pathlib import Path

from schemas.cpus import own_cpus
from schemas.errors import ConfigError

_OBJECT_STORE = 512 << 20
"""Bytes: between processes go names and numbers, not pictures."""
_LEAST_OBJECT_STORE = 80 << 20
"""Ray takes no fewer than 75 MiB."""
_LONGEST_SOCKET = 107
"""Bytes in the path of a Unix socket, on Linux."""
_SOCKET = "/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store"
"""The longest path that Ray makes below its folder."""


def usable_cpus(root: Path = Path("/")) -> int:
    """Return how many CPUs this process may use: those of its affinity, and no more than the quota
    of its cgroup. `os.cpu_count()` counts all that the machine has.
    """
    quotas = [quota for group in _groups(root) if (quota := _cpu_quota(group)) is not None]
    return max(1, int(min([own_cpus(), *quotas])))


def settle_threads(environment: MutableMapping[str, str] = os.environ) -> None:
    """Give libraries no more threads than the quota of CPUs, of which they do not know."""
    cpus = usable_cpus()
    if cpus < own_cpus():
        environment.setdefault("OMP_NUM_THREADS", str(cpus))


def memory_limit(root: Path = Path("/")) -> int | None:
    """Return the bytes of memory that this process's cgroup allows, if it has a limit."""
    limits = [
        int(text)
        for group in _groups(root)
        for name in ("memory.max", "memory.limit_in_bytes")
        if (text := _read(group / name)).isdecimal()
    ]
    least = min(limits, default=1 << 62)
    return least if least < 1 << 50 else None  # version 1 writes 2^63 where there is no limit


def _cpu_quota(group: Path) -> float | None:
    words = _read(group / "cpu.max").split()
    if not words:  # version 1
        words = [_read(group / f"cpu.cfs_{name}_us") for name in ("quota", "period")]
    if len(words) == 2 and all(word.isdecimal() and int(word) for word in words):
        return int(words[0]) / int(words[1])
    return None  # "max", or -1


def _groups(root: Path) -> Iterator[Path]:
    """Yield the folders of this process's cgroups and of the groups around them, version 1 and 2.
    In a container they often lie at the top, whatever their name is.
    """
    top = root / "sys/fs/cgroup"
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        group = Path(path.lstrip("/"))
        for name in controllers.split(","):
            for folder in (group, *group.parents):
                yield top / name.removeprefix("name=") / folder


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def object_store_memory(free: int, limit: int | None, folder: str) -> tuple[int, str]:
    """Return the bytes of Ray's object store, and what to say of it. `free` is what /dev/shm has
    left, `limit` the cgroup's memory, `folder` where Ray puts what does not fit into /dev/shm.
    """
    wanted = max(_LEAST_OBJECT_STORE, min(_OBJECT_STORE, (limit or _OBJECT_STORE * 4) // 4))
    if free >= wanted:
        return wanted, ""
    if free * 9 // 10 >= _LEAST_OBJECT_STORE:
        return free * 9 // 10, ""
    return _LEAST_OBJECT_STORE, (
        f"/dev/shm has {free >> 20} MB left, and Ray needs {_LEAST_OBJECT_STORE >> 20}: its object "
        f"store is in {folder}, which may be slower (docker run --shm-size=1g makes room)"
    )


def free_shared_memory() -> int:
    """Return the free bytes of /dev/shm; without one, as many as anyone may want."""
    try:
        found = os.statvfs("/dev/shm")
    except OSError:
        return 1 << 62
    return found.f_bavail * found.f_frsize


def ray_folder(environment: MutableMapping[str, str] = os.environ) -> tuple[str, str]:
    """Return a folder for Ray's sockets and logs, and what to say of it: the paths of sockets are
    short, so a long TMPDIR cannot hold them. Raises ConfigError if no folder will do.
    """
    name = "RAY_TMPDIR" if "RAY_TMPDIR" in environment else "TMPDIR"
    usual = os.path.abspath(os.path.join(environment.get(name, "/tmp"), "ray"))
    if not (reason := _unfit(usual)):
        return usual, ""
    for place in (tempfile.gettempdir(), "/tmp", "/var/tmp", "/dev/shm"):
        if not _unfit(f"{place}/ladd-ray-12345678"):
            chosen = tempfile.mkdtemp(prefix="ladd-ray-", dir=place)
            return chosen, f"{name}: {usual} {reason}; Ray's sockets and logs are in {chosen}"
    raise ConfigError(
        f"{name}: {usual} {reason}, and neither can /tmp be used; set RAY_TMPDIR to a folder with "
        "a short name that can be written"
    )


def _unfit(folder: str) -> str:
    """Return why Ray cannot use the folder, or an empty text."""
    if len(os.fsencode(folder + _SOCKET)) > _LONGEST_SOCKET:
        return "is too long for the sockets of Ray"
    return "" if can_write(Path(folder)) else "cannot be written"


def can_write(folder: Path) -> bool:
    """Whether files can be made in a folder, after making it and those above it if need be."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)


def settle_home(environment: MutableMapping[str, str] = os.environ) -> None:
    """Give a user without a name or without a home that can be written (a container under any user
    id) what libraries expect: a name, and a folder for caches.
    """
    try:
        own = pwd.getpwuid(os.getuid()).pw_dir
    except KeyError:
        own = ""
        for name in ("USER", "LOGNAME"):
            environment.setdefault(name, f"user{os.getuid()}")
    if not environment.get("HOME") and not own:
        environment["HOME"] = own_cache()
    home = Path(environment.get("HOME") or own)
    if "XDG_CACHE_HOME" not in environment and not can_write(home / ".cache"):
        environment["XDG_CACHE_HOME"] = own_cache()
        models = home / ".cache" / "huggingface"
        if models.is_dir():  # what is there can still be read
            environment.setdefault("HF_HOME", str(models))


def settle_token(environment: MutableMapping[str, str] = os.environ) -> None:
    """Give a local Ray its token: in a file that nobody else can read, as Ray's own would be, or in
    the environment if that can neither be read nor written.
    """
    if "RAY_AUTH_TOKEN" in environment or "RAY_AUTH_TOKEN_PATH" in environment:
        return
    token = Path(environment.get("HOME") or os.path.expanduser("~"), ".ray", "auth_token")
    if os.access(token, os.R_OK):
        return
    fresh = secrets.token_hex(32)
    if not can_write(token.parent):
        environment["RAY_AUTH_TOKEN"] = fresh
        return
    try:
        token.parent.mkdir(parents=True, exist_ok=True)
        with open(os.open(token, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(fresh)
    except FileExistsError:  # another run was faster
        return
    except OSError:
        environment["RAY_AUTH_TOKEN"] = fresh


def own_cache() -> str:
    """Return this user's folder for caches below the temporary folder, which it makes."""
    folder = Path(tempfile.gettempdir(), f"ladd-cache-{os.getuid()}")
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
    except OSError:
        return tempfile.mkdtemp(prefix="ladd-cache-")
    if folder.is_symlink() or folder.stat().st_uid != os.getuid():  # somebody else's
        return tempfile.mkdtemp(prefix="ladd-cache-")
    return str(folder)


def cache_remark(environment: MutableMapping[str, str] = os.environ) -> str:
    """Return what to say where caches are in the temporary folder, because of `settle_home`."""
    folder = environment.get("XDG_CACHE_HOME", "")
    if not os.path.basename(folder).startswith("ladd-cache-") or "HF_HOME" in environment:
        return ""
    return (
        f"HOME cannot be written: caches, models from a hub among them, are in {folder}; set "
        "HF_HOME to a folder that lasts"
    )
