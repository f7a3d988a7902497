"""What goes along with an artifact that is copied to another store."""

from __future__ import annotations

import threading

from pipeline.base.store import Artifact, ArtifactStore
from pipeline.base.transfer import Parcel, send
from tests.support.manifests import manifest_of


def test_markers_are_written_at_once(tmp_path, monkeypatch):
    """Bug: write a hundred thousand loose markers one after another."""
    source, target = (ArtifactStore(str(tmp_path / name)) for name in ("source", "target"))
    files = {"shards/0.tar": source.write("artifacts/synthesize/k/shards/0.tar", b"made")}
    made: Artifact = source.commit(manifest_of("synthesize", files))
    for number in range(4):
        source.write(f"artifacts/synthesize/k/shards/{number}.json", b"{}")
    met, write = threading.Barrier(4), ArtifactStore.write

    def meet(self, name, content):
        met.wait(20)
        return write(self, name, content)

    monkeypatch.setattr(ArtifactStore, "write", meet)
    send(Parcel.of(made, (), light=False), target, lambda: None)
    assert target.list("artifacts") == source.list("artifacts")
