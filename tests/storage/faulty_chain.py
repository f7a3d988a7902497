"""The whole graph on a real object store behind a proxy that spoils one request in twenty.

`make proofs-storage` runs it; `make test` has a short form, test_faults.py.
"""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import s3fs

from pipeline.base.store import ArtifactStore
from tests.support import chaos
from tests.support.command import COMMAND, ROOT, call_here
from tests.support.fault_proxy import fault_proxy

pytestmark = pytest.mark.timeout(7200)

WITHOUT_RAY = [sys.executable, "-m", "tests.support.without_ray"]


@pytest.mark.parametrize(
    ("command", "until"), [(WITHOUT_RAY, "distill"), (COMMAND, "eval")], ids=["alone", "ray"]
)
def test_the_chain_completes_behind_faults(
    command, until, bucket, endpoint, tmp_path, monkeypatch, capsys
):
    """To the student in one process, and the whole graph on Ray."""

    def run(url: str) -> None:
        told = ["--preset", "shapes-smoke", "--set", f"store={url}", "--until", until]
        result = subprocess.run([*command, "run", *told], cwd=ROOT, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr

    alone = ArtifactStore(str(tmp_path / "store"))
    run(alone.url)
    with fault_proxy(endpoint, 0.05, seed=1, stall_seconds=5) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.address)
        run(bucket)
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    s3fs.S3FileSystem.clear_instance_cache()
    where = ["--preset", "shapes-smoke", "--set", f"store={bucket}"]
    checked = call_here("artifacts", "verify", "--deep", *where)
    assert checked.returncode == 0, checked.stderr
    store = ArtifactStore(bucket)
    made = chaos.made(store)
    assert until in made and made == chaos.made(alone)
    (record,) = [name for name in store.list("runs") if name.endswith("run.json")]
    stages = json.loads(store.read(f"runs/{record}"))["stages"]
    retries = {row["stage"]: row.get("retries", 0) for row in stages}
    with capsys.disabled():
        print(f"\n{proxy.requests} requests, faults {dict(proxy.faults)}, retries {retries}")
    assert 0 < sum(retries.values()) <= sum(proxy.faults.values())
