"""What waits for a store is done many pieces at a time."""

from __future__ import annotations

import threading

from pipeline.base.store import ArtifactStore
from pipeline.base.threads import in_order
from pipeline.base.transfer import Parcel, send
from tests.support.manifests import manifest_of


def test_results_come_in_order_and_no_more_are_begun_than_asked_for():
    begun, met = [], threading.Barrier(3)

    def work(number: int) -> int:
        begun.append(number)
        met.wait(20)
        return number * number

    results = in_order(work, range(6), 3)
    assert next(results) == 0 and sorted(begun) == [0, 1, 2]
    assert list(results) == [1, 4, 9, 16, 25]
    assert list(in_order(work, [], 3)) == []


def test_markers_are_copied_to_another_store_at_once(tmp_path, monkeypatch):
    """Bug: write a hundred thousand loose markers one after another."""
    source, target = (ArtifactStore(str(tmp_path / name)) for name in ("source", "target"))
    files = {"shards/0.tar": source.write("artifacts/synthesize/k/shards/0.tar", b"made")}
    made = source.commit(manifest_of("synthesize", files))
    for number in range(4):
        source.write(f"artifacts/synthesize/k/shards/{number}.json", b"{}")
    met, write = threading.Barrier(4), ArtifactStore.write

    def meet(self, name, content):
        if name.startswith("artifacts/synthesize/k/shards/"):
            met.wait(20)
        return write(self, name, content)

    monkeypatch.setattr(ArtifactStore, "write", meet)
    send(Parcel.of(made, (), light=False), target, lambda: None)
    assert target.list("artifacts") == source.list("artifacts")
