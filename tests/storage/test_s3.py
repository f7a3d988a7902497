"""The store on a real S3 server on loopback, and the whole chain on it."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from pathlib import Path

import pytest
import yaml

from pipeline.store import ArtifactStore
from schemas.errors import ArtifactError
from tests.conftest import make_tiny_config

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def endpoint():
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(endpoint, monkeypatch):
    import s3fs

    settings = {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    name = f"bucket-{uuid.uuid4().hex[:8]}"
    s3fs.S3FileSystem(endpoint_url=endpoint).mkdir(name)
    yield f"s3://{name}/prefix"
    s3fs.S3FileSystem.clear_instance_cache()


def test_store_on_s3(bucket):
    store = ArtifactStore(bucket)
    assert store.create("a/manifest.json", b"one") is True
    assert store.create("a/manifest.json", b"two") is False
    assert store.read("a/manifest.json") == b"one"
    store.write("a/data.bin", b"12345")
    assert store.list("a") == {"manifest.json": 3, "data.bin": 5}
    with store.local("a/data.bin") as path:
        assert path.read_bytes() == b"12345"
    store.remove("a")
    assert store.list("a") == {}


def test_missing_bucket_is_named(bucket):
    with pytest.raises(ArtifactError, match="store s3://no-such-bucket-here/x: cannot write"):
        ArtifactStore("s3://no-such-bucket-here/x").write("a", b"b")


def test_whole_chain_on_s3(bucket, tiny_sd3, tmp_path):
    config = make_tiny_config(tiny_sd3, bucket).model_dump(mode="json")
    path = tmp_path / "pipeline.yaml"
    path.write_text(yaml.safe_dump(config))
    command = [sys.executable, "-m", "pipeline.cli", "run", "-c", str(path), "--until", "distill"]
    result = subprocess.run(
        command, cwd=ROOT, env=os.environ, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stderr
    assert f"student: {bucket}/artifacts/distill/" in result.stdout
    verify = [sys.executable, "-m", "pipeline.cli", "artifacts", "verify", "-c", str(path)]
    result = subprocess.run(
        verify, cwd=ROOT, env=os.environ, capture_output=True, text=True, timeout=100
    )
    assert result.stdout.startswith("4 artifacts are as their manifests say"), result.stderr
