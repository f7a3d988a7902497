"""One run at a time in a folder of the store: a training keeps its checkpoints in one."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace

import psutil

from pipeline.base.store import ArtifactStore
from schemas.errors import LaddError, Locked

BEAT_SECONDS = 10.0
"""A holder that is alive writes a new beat so often; one that has missed three is dead."""
_FILE = "lease.json"
_LOOKS = 10
"""In the time of a beat."""


@dataclass(frozen=True)
class _Holder:
    """Who holds a lease, as its file says."""

    token: str
    host: str
    space: str
    """Of process numbers: a container's are its own."""
    process: int
    born: float
    """When the process began: its number alone may be that of another by now."""
    beat: int = 0

    @classmethod
    def me(cls) -> _Holder:
        me = psutil.Process()
        return cls(uuid.uuid4().hex, *_where(), me.pid, me.create_time())

    @property
    def has_ended(self) -> bool:
        """Whether it is known to: only the holder's own machine can tell at once."""
        if (self.host, self.space) != _where():
            return False
        try:
            return bool(psutil.Process(self.process).create_time() != self.born)
        except psutil.NoSuchProcess:
            return True


@contextlib.contextmanager
def held(store: ArtifactStore, folder: str, what: str) -> Iterator[None]:
    """Hold the lease of a folder. One that a killed process left is taken over: at once on that
    process's machine, elsewhere after three beats.

    Raises Locked, naming `what` the folder is for, when another holder is alive.
    """
    name = f"{folder}/{_FILE}"
    mine = _Holder.me()
    while not store.create(name, _content(mine)):
        found = _read(store, name)
        if found is None:
            continue
        if _is_alive(store, name, found):
            raise Locked(
                f"{what}: another run is at work on it (process {found.process} on {found.host}); "
                "wait until it has ended, or end it"
            )
        store.remove(name)
    ended = threading.Event()
    beating = threading.Thread(target=_beat, args=(store, name, mine, ended), daemon=True)
    beating.start()
    try:
        yield
    finally:
        ended.set()
        beating.join()
        store.remove(name)


def is_held(store: ArtifactStore, folder: str) -> bool:
    """Whether somebody who is alive holds a folder's lease; takes up to three beats to tell."""
    name = f"{folder}/{_FILE}"
    found = _read(store, name)
    return found is not None and _is_alive(store, name, found)


def _is_alive(store: ArtifactStore, name: str, found: _Holder) -> bool:
    """Watches for a new beat, so that no two clocks are compared."""
    for _ in range(3 * _LOOKS):
        if found.has_ended:
            return False
        now = _read(store, name)
        if now is None:
            return False
        if now != found:
            return True
        time.sleep(BEAT_SECONDS / _LOOKS)
    return False


def _beat(store: ArtifactStore, name: str, mine: _Holder, ended: threading.Event) -> None:
    beat = 0
    while not ended.wait(BEAT_SECONDS):
        beat += 1
        with contextlib.suppress(LaddError):  # a store that is away: the next beat is tried
            store.write(name, _content(replace(mine, beat=beat)))


def _where() -> tuple[str, str]:
    try:
        return socket.gethostname(), os.readlink("/proc/self/ns/pid")
    except OSError:  # not Linux
        return socket.gethostname(), ""


def _content(holder: _Holder) -> bytes:
    return json.dumps(asdict(holder)).encode()


def _read(store: ArtifactStore, name: str) -> _Holder | None:
    content = store.read(name)
    return None if content is None else _Holder(**json.loads(content))
