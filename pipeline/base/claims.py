"""Several runs that work on one artifact: who is there, who makes which shard, and who finishes.

In the store's folder `claims/<stage>/<key>/`, each run holds a lease of its own, `runs/<token>`,
whose beats say that it is alive. A shard is claimed, by a file with the token of a run, before it
is made; the claims of a run that has died are taken over. One run at a time holds `lease.json`: it
writes what is made from all shards, and commits.
"""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any

from pipeline.base.lease import (
    Lease,
    held,
    holder_of,
    is_held,
    may_be_held,
    process_has_ended,
    take_over,
)
from pipeline.base.store import ArtifactStore, json_object
from pipeline.base.threads import in_order
from schemas.errors import LaddError, Locked

if TYPE_CHECKING:
    from schemas.config import Conflict

_WATCHED_AT_ONCE = 32
POLL_SECONDS = 1.0
"""Pause between two looks at what another run is doing."""


class MadeElsewhere(Exception):
    """Another run has committed the artifact."""


@dataclass(frozen=True)
class Claims:
    """The claims of one run on the shards of an artifact. They can be sent to workers."""

    store: ArtifactStore
    folder: str
    """`claims/<stage>/<key>`."""
    token: str
    """Of the run."""

    def take(self, shard: str) -> bool:
        """Claim a shard. Returns False if another run has claimed it, dead or alive."""
        lease = self._lease(shard)
        if self.store.create(lease.name, lease.content()):
            return True
        return self.owner(shard) == self.token

    def give_back(self, shard: str) -> None:
        """Remove the claim on a shard, which is made or given up."""
        self.store.remove_files([self._lease(shard).name])

    def owner(self, shard: str) -> str | None:
        """Return the token of the run that has claimed a shard: empty for a damaged claim, None
        if nobody claims it.
        """
        found = self.store.read(self._lease(shard).name)
        return None if found is None else _token(found)

    def is_live(self, token: str, *, watch: bool) -> bool:
        """Whether a run may be alive. With `watch`, whether it is: takes up to three beats."""
        folder = run_folder(self.folder, token)
        return bool(token) and (
            is_held(self.store, folder) if watch else may_be_held(self.store, folder)
        )

    def take_from(self, owner: str, shard: str) -> bool:
        """Claim a shard that a dead run had claimed. Returns whether no other was faster."""
        lease = self._lease(shard)
        found = self.store.read(lease.name)
        return found is not None and _token(found) == owner and take_over(lease, found)

    def is_alone(self) -> bool:
        """Whether no other run is there. One that may be dead counts. One request."""
        return not runs_in(self.store, self.folder) - {self.token}

    def _lease(self, shard: str) -> Lease:
        return Lease(self.store, f"{self.folder}/{shard}.json", shard, self.token)


class Crew:
    """This run's place among the runs that work on one artifact. Use it as a context: what it holds
    it gives back at the end. With `again` it makes what another run has committed.
    """

    def __init__(
        self,
        store: ArtifactStore,
        stage: str,
        key: str,
        conflict: Conflict,
        note: Callable[[str], None],
        *,
        again: bool = False,
    ) -> None:
        self._store, self._stage, self._key = store, stage, key
        self._conflict, self._note = conflict, note
        self._again = again
        self._folder = claims_folder(stage, key)
        self._stack = contextlib.ExitStack()
        self._told: set[str] = set()
        self._finishes = False
        self.claims: Claims | None = None
        """The claims of this run, from `join` on."""

    def __enter__(self) -> Crew:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()
        with contextlib.suppress(LaddError):  # what stays is stale, and taken over
            tidy(self._store, self._folder)

    def __getstate__(self) -> dict[str, Any]:
        """On a worker there is nothing to hold."""
        return {}

    def join(self) -> Claims:
        """Say that this run is there, and return its claims. Unless runs share, waits until no
        other is, or raises Locked. Raises MadeElsewhere if another has committed meanwhile.
        """
        if self._conflict != "share" and not self._finishes:
            self.wait_until_alone()
        token = uuid.uuid4().hex
        self._stack.enter_context(held(self._store, run_folder(self._folder, token), self._stage))
        self.claims = Claims(self._store, self._folder, token)
        return self.claims

    def wait_until_alone(self) -> None:
        """Wait until no other run works on the artifact. Raises Locked and MadeElsewhere as `wait`
        does.
        """
        while live := live_runs(self._store, self._folder):
            self.wait(live[0])

    def finish(self) -> None:
        """Hold what only one run may hold: from here on no other writes what is made of all shards,
        nor commits. Raises MadeElsewhere if another run has.
        """
        if self._finishes:
            return
        lease = held(self._store, self._folder, self._stage, self.wait)
        self._stack.enter_context(lease)
        self._finishes = True
        self._require_unmade()

    def wait(self, who: str) -> None:
        """Wait a moment for another run that is in the way; `who` names it. Raises Locked if this
        run is not to wait, MadeElsewhere if the other has committed the artifact.
        """
        self._require_unmade()
        if self._conflict == "fail":
            raise Locked(
                f"{self._stage}: another run is using it ({who}); wait until that run ends, or "
                "stop it; --on-conflict wait or share does so by itself"
            )
        if who not in self._told:
            self._told.add(who)
            self._note(f"another run is at work on it ({who}); waiting for it")
        time.sleep(POLL_SECONDS)

    def _require_unmade(self) -> None:
        if not self._again and self._store.find(self._stage, self._key) is not None:
            raise MadeElsewhere


def _token(claim: bytes) -> str:
    """The token in a claim, which names a folder; empty for what cannot be one."""
    token = (json_object(claim) or {}).get("token")
    return token if isinstance(token, str) and token.isascii() and token.isalnum() else ""


def claims_folder(stage: str, key: str) -> str:
    """Return the folder of the claims on an artifact, relative to the store."""
    return f"claims/{stage}/{key}"


def run_folder(folder: str, token: str) -> str:
    """Return the folder of a run's own lease."""
    return f"{folder}/runs/{token}"


def runs_in(store: ArtifactStore, folder: str) -> set[str]:
    """Return the tokens of all runs that have said that they are there. One request."""
    return {name.split("/")[0] for name in store.list(f"{folder}/runs")}


def live_runs(store: ArtifactStore, folder: str) -> list[str]:
    """Return words that name the live runs on an artifact. Takes up to three beats to tell: all are
    watched at once.
    """
    return _holders(store, [*_run_folders(store, folder), folder])


def _run_folders(store: ArtifactStore, folder: str) -> list[str]:
    return [run_folder(folder, run) for run in sorted(runs_in(store, folder))]


def _holders(store: ArtifactStore, places: list[str]) -> list[str]:
    """Words that name the live holders of the leases in some folders."""
    found = in_order(partial(holder_of, store), places, _WATCHED_AT_ONCE)
    return [who for who in found if who is not None]


@contextlib.contextmanager
def alone_on(store: ArtifactStore, stage: str, key: str) -> Iterator[None]:
    """Hold an artifact on which no run works: none can commit it meanwhile. Raises Locked if a live
    run works on it; takes up to three beats to tell.
    """
    folder = claims_folder(stage, key)
    with held(store, folder, stage):
        who = next(iter(_holders(store, _run_folders(store, folder))), None)
        if who is not None:
            raise Locked(f"{stage}/{key}: a run is at work on it ({who}); wait until it ends")
        yield
    store.remove_empty(folder)


def tidy(store: ArtifactStore, folder: str) -> None:
    """Remove what runs that have ended left of an artifact's claims, unless a run is there that may
    be alive: on this machine, or elsewhere.
    """
    left = store.list(folder)
    leases = [name for name in left if name.endswith("lease.json")]
    ended = {
        name
        for name, content in store.read_all([f"{folder}/{name}" for name in leases]).items()
        if process_has_ended(content)
    }
    if all(f"{folder}/{name}" in ended for name in leases):
        store.remove_files([f"{folder}/{name}" for name in left])
        store.remove_empty(folder)
    else:
        store.remove_files(sorted(ended))
