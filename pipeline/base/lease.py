"""A lease on a folder of the store: only one run at a time may use a training's checkpoints."""

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
"""A live holder writes a new beat at this interval; a holder that missed three beats is dead."""
_FILE = "lease.json"
_LOOKS = 10
"""How often a holder is checked per beat interval."""


@dataclass(frozen=True)
class _Holder:
    """The holder of a lease, as the lease file records it."""

    token: str
    host: str
    space: str
    """The process-id namespace: each container has a separate one."""
    process: int
    born: float
    """Start time of the process. Its id is not enough: another process may have it by now."""
    beat: int = 0

    @classmethod
    def me(cls) -> _Holder:
        me = psutil.Process()
        return cls(uuid.uuid4().hex, *_where(), me.pid, me.create_time())

    @property
    def has_ended(self) -> bool:
        """Whether the process is known to have ended: only its own machine can tell at once."""
        if (self.host, self.space) != _where():
            return False
        try:
            return bool(psutil.Process(self.process).create_time() != self.born)
        except psutil.NoSuchProcess:
            return True


@contextlib.contextmanager
def held(store: ArtifactStore, folder: str, what: str) -> Iterator[None]:
    """Hold the lease of a folder until the block ends.

    The lease of a killed process is taken over: at once on the machine of that process, elsewhere
    after three beats. Raises Locked, naming `what` the folder is for, if another holder is alive.
    """
    name = f"{folder}/{_FILE}"
    mine = _Holder.me()
    while not store.create(name, _content(mine)):
        holder = _read(store, name)
        if holder is None:
            continue
        if _is_alive(store, name, holder):
            raise Locked(
                f"{what}: another run is using it (process {holder.process} on {holder.host}); "
                "wait until that run ends, or stop it"
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
    """Whether a live holder has a folder's lease. Takes up to three beats to tell."""
    name = f"{folder}/{_FILE}"
    holder = _read(store, name)
    return holder is not None and _is_alive(store, name, holder)


def _is_alive(store: ArtifactStore, name: str, found: _Holder) -> bool:
    """Watch for a new beat. This avoids comparing the clocks of two machines."""
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
        with contextlib.suppress(LaddError):  # store unreachable: retry at the next beat
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
