"""A lease on a folder of the store: only one run at a time may use a training's checkpoints.

Knows no clock: a holder is alive while its beats change the lease's content.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass

from pipeline.base.processes import birth, has_ended, here
from pipeline.base.store import ArtifactStore, json_object
from schemas.errors import ArtifactError, LaddError, Locked

BEAT_SECONDS = 10.0
"""A live holder writes a new beat at this interval; a holder that missed three beats is dead."""
LEASE = "lease.json"
_LOOKS = 10
"""How often a holder is checked per beat interval."""
_TRIES = 100
"""How often a lease that vanishes each time it is read may be tried again."""


@dataclass(frozen=True)
class Lease:
    """A held lease. It can be sent to workers, which check it before they write."""

    store: ArtifactStore
    name: str
    what: str
    token: str

    def check(self) -> None:
        """Raise Locked if another run has taken the lease over."""
        if self.is_lost():
            raise Locked(
                f"{self.what}: another run has taken over its training, because this one gave no "
                "sign of life for too long; this run stops, the other continues"
            )

    def content(self, beat: int = 0) -> bytes:
        """Return what this process writes into the lease."""
        return json.dumps(asdict(_Holder.me(self.token)) | {"beat": beat}).encode()

    def is_lost(self) -> bool:
        """Whether another holder is written in the lease. A lease that is missing or damaged is not
        lost: the next beat writes it again.
        """
        content = self.store.read(self.name)
        holder = json_object(content) if content is not None else None
        return holder is not None and holder.get("token", self.token) != self.token


@dataclass(frozen=True)
class _Holder:
    """The holder of a lease, as the lease file records it."""

    token: str
    host: str
    machine: str
    space: str
    process: int
    born: float | None
    beat: int = 0

    @classmethod
    def me(cls, token: str) -> _Holder:
        me = os.getpid()
        return cls(token, socket.gethostname(), *here(), me, birth(me))


@contextlib.contextmanager
def held(
    store: ArtifactStore, folder: str, what: str, wait: Callable[[str], None] | None = None
) -> Iterator[Lease]:
    """Hold the lease of a folder until the block ends.

    The lease of a killed process is taken over: at once on the machine of that process, elsewhere
    after three beats, and so is one that is damaged. If another holder is alive, `wait` is called,
    with words that name it, and the lease is tried again; `wait` may raise to give up. Without
    `wait`, Locked is raised, naming `what` the folder is for.
    """
    lease = Lease(store, f"{folder}/{LEASE}", what, uuid.uuid4().hex)
    _take(lease, wait)
    ended = threading.Event()
    beating = threading.Thread(target=_beat, args=(lease, ended), daemon=True)
    beating.start()
    try:
        yield lease
    finally:
        ended.set()
        beating.join()
        with contextlib.suppress(LaddError):  # without beats it is dead all the same
            if not lease.is_lost():
                store.remove(lease.name)


def is_held(store: ArtifactStore, folder: str) -> bool:
    """Whether a live holder has a folder's lease. Takes up to three beats to tell."""
    return holder_of(store, folder) is not None


def may_be_held(store: ArtifactStore, folder: str) -> bool:
    """Whether a folder has a lease whose holder is not known to have ended."""
    found = store.read(f"{folder}/{LEASE}")
    return found is not None and not process_has_ended(found)


def holder_of(store: ArtifactStore, folder: str) -> str | None:
    """Return words that name the live holder of a folder's lease, or None. Takes up to three beats
    to tell.
    """
    name = f"{folder}/{LEASE}"
    found = store.read(name)
    if found is None or _watched(store, name, found) != "alive":
        return None
    return _who(found)


def process_has_ended(content: bytes) -> bool:
    """Whether a holder's process is known to have ended: only its own machine can tell at once."""
    holder = json_object(content) or {}
    process, born = holder.get("process"), holder.get("born")
    if (holder.get("machine"), holder.get("space")) != here():
        return False
    if not isinstance(process, int) or not isinstance(born, (int, float)):
        return False
    return has_ended(process, born)


def take_over(lease: Lease, dead: bytes) -> bool:
    """Put this lease in the place of a dead one, unless another process does so. Returns whether it
    did.

    Two processes may find the same lease dead, so whoever replaces it first creates a claim on
    exactly this content, exclusively, and looks once more. If that process dies there, its claim is
    claimed in turn. A claim is removed after the lease has changed: then it opens nothing.
    """
    store, claims, content = lease.store, [], dead
    while True:
        claims.append(f"{lease.name}.{hashlib.sha256(content).hexdigest()[:16]}.claim")
        if store.create(claims[-1], lease.content()):
            break
        found = store.read(claims[-1])
        if found is None or _watched(store, claims[-1], found) != "dead":
            return False
        content = found
    unchanged = store.read(lease.name) == dead
    if unchanged:
        store.write(lease.name, lease.content())
    for claim in claims:
        store.remove(claim)
    return unchanged


def clear(store: ArtifactStore, stage: str, key: str) -> None:
    """Remove an artifact and its training. Raises Locked if another run is using them."""
    training = store.training_folder(stage, key)
    with held(store, training, stage):
        store.remove(store.folder(stage, key))
        for name in {name.split("/")[0] for name in store.all_files(training)} - {LEASE}:
            store.remove(f"{training}/{name}")


def _take(lease: Lease, wait: Callable[[str], None] | None) -> None:
    """Create the lease, or take a dead one over."""
    store, name = lease.store, lease.name
    tries = 0
    while tries < _TRIES:
        tries += 1
        # A store may have created it although its answer was lost, and say now that it is there.
        is_new = store.create(name, lease.content())
        found = lease.content() if is_new else store.read(name)
        if found == lease.content():
            if _is_ours_for_sure(lease):
                return
            continue
        if found is None:
            continue
        if _watched(store, name, found) == "alive":
            if wait is None:
                raise Locked(
                    f"{lease.what}: another run is using it ({_who(found)}); wait until that run "
                    "ends, or stop it"
                )
            wait(_who(found))
            tries = 0
        elif take_over(lease, found) and _is_ours_for_sure(lease):
            return
    raise ArtifactError(
        f"store {store.url}: {name} keeps appearing and disappearing, so no run can hold it; "
        "check the store, and that no other program changes its files"
    )


def _is_ours_for_sure(lease: Lease) -> bool:
    """Where several can create one file at once, the last one wins, and all look who that is."""
    if lease.store.is_exclusive:
        return True
    time.sleep(BEAT_SECONDS / _LOOKS)
    return not lease.is_lost()


def _watched(store: ArtifactStore, name: str, found: bytes) -> str:
    """Watch a lease for a new beat: "alive", "dead" or "gone". This avoids comparing the clocks of
    two machines.
    """
    for _ in range(3 * _LOOKS):
        if process_has_ended(found):
            return "dead"
        now = store.read(name)
        if now is None:
            return "gone"
        if now != found:
            return "alive"
        time.sleep(BEAT_SECONDS / _LOOKS)
    return "dead"


def _beat(lease: Lease, ended: threading.Event) -> None:
    beat = 0
    while not ended.wait(BEAT_SECONDS):
        beat += 1
        with contextlib.suppress(LaddError):  # store unreachable: retry at the next beat
            if lease.is_lost():
                return
            lease.store.write(lease.name, lease.content(beat))


def _who(content: bytes) -> str:
    holder = json_object(content) or {}
    if "process" not in holder or "host" not in holder:
        return "it keeps changing the lease"
    return f"process {holder['process']} on {holder['host']}"
