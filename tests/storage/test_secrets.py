"""What is secret is nowhere in what runs leave behind, and Ray is for this machine alone."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import psutil
import pytest

from pipeline.base.store import ArtifactStore
from tests.support.command import COMMAND, ROOT, call_here
from tests.support.foreign_tars import pack
from tests.support.picture_files import drawn_picture, file_of
from tests.support.s3_servers import KEYS
from tests.support.web import web_server

pytestmark = pytest.mark.slow

PLANTED = {
    "HF_TOKEN": "planted-hf-71c2",
    "WANDB_API_KEY": "planted-wandb-88d1",
    "LADD_TEST_PASSWORD": "planted-password-0a9e",
}
SIGNATURE = "planted-signature-5f3b"


def secrets() -> list[bytes]:
    return [text.encode() for text in (*PLANTED.values(), SIGNATURE, KEYS["writer"][1])]


def holding(files: dict[str, bytes]) -> list[str]:
    """The names of the files that hold a secret."""
    return [name for name, content in files.items() if any(s in content for s in secrets())]


def stored(url: str) -> dict[str, bytes]:
    store = ArtifactStore(url)
    return store.read_all(list(store.all_files("")))


def below(folder: Path) -> dict[str, bytes]:
    """The files in a folder that can be read: Ray has sockets and links in its own."""
    found = {}
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):
            if path.is_file():
                found[str(path)] = path.read_bytes()
    return found


@pytest.fixture
def shards(tmp_path):
    """A web server with a sound and a damaged shard, whose addresses are signed."""
    (tmp_path / "www").mkdir()
    picture = file_of(drawn_picture(64, 64))
    members = [(f"{i}.png", picture) for i in range(4)]
    members += [(f"{i}.txt", f"picture number {i}".encode()) for i in range(4)]
    pack(tmp_path / "www" / "good.tar", members)
    (tmp_path / "www" / "bad.tar").write_bytes(b"no tar at all" * 100)
    with web_server(tmp_path / "www") as address:
        yield lambda name: f"{address}/{name}?X-Amz-Date=now&X-Amz-Signature={SIGNATURE}"


def arguments(store: str, address: str) -> list[str]:
    settings = [f"store={store}", f"encode.external=[{address!r}]", "prompts.held_out_fraction=0"]
    flags = [part for setting in settings for part in ("--set", setting)]
    return ["run", "--preset", "shapes-smoke", "--until", "encode", *flags]


def listening(process: psutil.Process) -> dict[str, set[str]]:
    """The addresses on which a process and its children listen, by their names."""
    found: dict[str, set[str]] = {}
    for one in [process, *process.children(recursive=True)]:
        with contextlib.suppress(psutil.Error):
            for place in one.net_connections(kind="inet"):
                if place.status == psutil.CONN_LISTEN:
                    address = place.laddr.ip.removeprefix("::ffff:")
                    found.setdefault(one.name(), set()).add(address)
    return found


def test_a_run_leaves_no_secret_behind_and_its_ray_listens_on_loopback(bucket, shards):
    """The store, the output, and all that Ray has written: logs, and the workers' environment."""
    ray = Path(tempfile.mkdtemp(prefix="r"))  # pytest's paths are too long for Ray's sockets
    environment = os.environ | PLANTED | {"RAY_TMPDIR": str(ray), "RAY_worker_niceness": "0"}
    command = [*COMMAND, *arguments(bucket, shards("good.tar"))]
    with open(ray / "out", "wb") as out:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=out, stderr=out)
        heard: dict[str, set[str]] = {}
        while process.poll() is None:
            with contextlib.suppress(psutil.Error):
                for name, places in listening(psutil.Process(process.pid)).items():
                    heard.setdefault(name, set()).update(places)
            time.sleep(0.5)
    output = (ray / "out").read_text()
    assert process.returncode == 0, output
    assert {"raylet", "gcs_server"} <= set(heard)
    assert set().union(*heard.values()) <= {"127.0.0.1", "::1"}, heard
    files = stored(bucket)
    assert any(name.endswith("run.json") for name in files) and holding(files) == []
    left = below(ray)
    assert any(name.endswith("raylet.out") for name in left) and holding(left) == []
    shutil.rmtree(ray)
    again = call_here(*arguments(bucket, shards("good.tar").replace("now", "later")))
    assert again.returncode == 0 and "│ ran" not in again.stdout, "a new signature is no new key"


def test_a_failed_run_leaves_no_secret_behind(bucket, shards, monkeypatch, tmp_path):
    for name, value in PLANTED.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    for options in ([], ["--debug"]):
        failed = call_here(*options, *arguments(bucket, shards("bad.tar")))
        assert failed.returncode == 4 and "damaged or cut short" in failed.stderr, failed.stderr
        told = failed.stderr.split("to resume:")[0]  # which is the command, as it was typed
        assert holding({"output": (failed.stdout + told).encode()}) == []
    files = stored(bucket)
    assert any(name.endswith("events.jsonl") for name in files) and holding(files) == []
    assert holding(below(tmp_path)) == []
