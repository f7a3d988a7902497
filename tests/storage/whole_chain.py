"""The whole graph on a real object store, twice: the second run computes and writes nothing.

`make proofs-storage` runs it; `make test` has a short form.
"""

from __future__ import annotations

from pipeline.base.store import ArtifactStore
from tests.support.command import call


def test_the_whole_smoke_chain_on_seaweedfs_runs_once(bucket):
    store = ArtifactStore(bucket)
    arguments = ["run", "--preset", "shapes-smoke", "--set", f"store={bucket}"]
    first = call(*arguments)
    assert first.returncode == 0, first.stderr
    made = first.stdout.count("│ ran ")
    assert made == 7 and "report.html" in first.stdout, first.stdout
    before = store.filesystem.find(store.root, detail=True)
    second = call(*arguments)
    assert second.returncode == 0, second.stderr
    assert second.stdout.count("│ done ") == 7 and "│ ran " not in second.stdout
    after = store.filesystem.find(store.root, detail=True)
    assert {name: row["LastModified"] for name, row in after.items()} == {
        name: row["LastModified"] for name, row in before.items()
    }
    where = ["--preset", "shapes-smoke", "--set", f"store={bucket}"]
    checked = call("artifacts", "verify", "--deep", *where)
    assert checked.returncode == 0, checked.stderr
