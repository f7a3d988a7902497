"""Compares our latent reader with stock `webdataset` on the same latents, from a folder and S3.

    python benchmarks/latent_reader.py

Both produce shuffled batches of one bucket with latents and prompt embeddings. `webdataset` reads
tars of .npy members through its shuffle buffer, decoder and batching, and uses curl for S3. Ours
memory-maps the files of an encode artifact, fetches ranges from S3 through its local cache, and
reads ahead in a thread. The cold figure is the first pass over all samples, including opening and
fetching (the page cache is warm for both, since the script may not drop it); the warm figure is the
second pass. Also prints how many times faster ours is than training consumes samples: `--consumed`,
by default what `distill_step.py` prints for 42 M parameters in bfloat16 on two cores. The S3 server
on loopback reads a whole object for each requested range, which slows ours when its cache is cold.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator

import numpy as np
import webdataset

from pipeline.base.parquet import table_bytes
from pipeline.base.store import Artifact, ArtifactStore
from pipeline.stage_task import environment
from schemas.manifest import FileEntry, Manifest
from stages.data.latent_batches import LatentData
from stages.encode import PROMPT_COLUMNS, ROW_COLUMNS
from stages.ladd.batch_plan import BatchPlan

BUCKET, PER_FILE, BATCH = "1024x1024", 256, 32


def make_data(store: ArtifactStore, count: int, side: int, tokens: int, width: int) -> Artifact:
    """Write an encode artifact and the same samples as tars."""
    rng = np.random.default_rng(0)
    files: dict[str, tuple[int, str]] = {}
    parts, prompts, stored = [], [], []

    def write(name: str, content: bytes) -> None:
        files[name] = store.write(f"artifacts/encode/bench/{name}", content)

    embeddings = {
        "tokens": rng.standard_normal((count, tokens, width)).astype(np.float16),
        "pooled": rng.standard_normal((count, width)).astype(np.float16),
    }
    for first in range(0, count, PER_FILE):
        rows = range(first, min(first + PER_FILE, count))
        latents = rng.standard_normal((len(rows), 16, side, side)).astype(np.float16)
        base = f"latents/{BUCKET}/{first:06d}"
        write(f"{base}.npy", _npy(latents))
        keys = [{"key": f"{i:06d}", "prompt_id": f"{i:06d}"} for i in rows]
        write(f"{base}.parquet", table_bytes(keys, ROW_COLUMNS))
        parts.append({"bucket": BUCKET, "file": f"{base}.npy", "index": f"{base}.parquet"})
        parts[-1]["rows"] = len(rows)
        prompts += [{"prompt_id": f"{i:06d}", "prompt": f"prompt {i}"} for i in rows]
        for name, array in embeddings.items():
            write(f"prompts/{first:06d}.{name}.npy", _npy(array[first : rows.stop]))
        stored.append({name: f"prompts/{first:06d}.{name}.npy" for name in embeddings})
        tar = io.BytesIO()
        with webdataset.TarWriter(tar) as writer:
            for i in rows:
                sample = {"__key__": f"{i:06d}", "latent.npy": latents[i - first]}
                writer.write(sample | {f"{n}.npy": e[i] for n, e in embeddings.items()})
        store.write(f"tars/{first:06d}.tar", tar.getvalue())
    write("prompts.parquet", table_bytes(prompts, PROMPT_COLUMNS))
    manifest = Manifest(
        stage="encode",
        key="bench",
        version=1,
        inputs=[],
        identity={},
        config={},
        environment=environment(),
        files=[FileEntry(path=p, size=s, sha256=d) for p, (s, d) in sorted(files.items())],
        started="",
        seconds=0,
        details={
            "buckets": {BUCKET: parts},
            "prompts": ["prompts.parquet"],
            "embeddings": stored,
            "null_tokens": 0,
        },
    )
    return store.commit(manifest)


def _npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=False)
    return file.getvalue()


class Ours:
    """Our reader. The first pass opens it, as a training does; the second has a warm cache."""

    def __init__(self, artifact: Artifact) -> None:
        self.artifact, self.passes, self.data = artifact, 0, None

    def __iter__(self) -> Iterator[int]:
        self.data = self.data or LatentData(self.artifact)
        plan = BatchPlan(self.data.sizes, BATCH, 0)
        start = self.passes * plan.batches_per_epoch
        self.passes += 1
        wanted = (plan.batch(step) for step in range(start, start + plan.batches_per_epoch))
        for _, latents, conditioning in self.data.ahead(wanted):
            assert len(latents) == len(conditioning.pooled_BP) == BATCH
            yield BATCH


def stock(urls: list[str]) -> Iterator[int]:
    dataset = (
        webdataset.WebDataset(urls, shardshuffle=100, seed=0, empty_check=False)
        .shuffle(1000)
        .decode()
        .to_tuple("latent.npy", "tokens.npy", "pooled.npy")
        .batched(BATCH, partial=False)
    )
    for latents, _tokens, _pooled in dataset:
        yield len(latents)


def rate(batches: Iterable[int]) -> float:
    start = time.perf_counter()
    return sum(batches) / (time.perf_counter() - start)


def compare(where: str, artifact: Artifact, urls: list[str], consumed: float) -> None:
    ours = Ours(artifact)
    for name in ("cold", "warm"):
        fast, slow = rate(ours), rate(stock(urls))
        line = f"{where:6} {name}: ours {fast:9.0f}, webdataset {slow:9.0f} samples/s: "
        line += f"{fast / slow:6.1f} times; "
        line += f"{fast / consumed:.0f} times what training consumes"
        print(line, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=2048)
    parser.add_argument("--side", type=int, default=32, help="latent height and width")
    parser.add_argument("--tokens", type=int, default=77)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument(
        "--consumed", type=float, default=3.5, help="samples/s that distill_step.py printed"
    )
    args = parser.parse_args()
    size = (args.count, args.side, args.tokens, args.width)
    with tempfile.TemporaryDirectory() as folder:
        store = ArtifactStore(folder)
        artifact = make_data(store, *size)
        compare("folder", artifact, [store.path(name) for name in _tars(store)], args.consumed)
    with s3_server() as endpoint:
        os.environ |= {
            "AWS_ENDPOINT_URL": endpoint,
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        import s3fs

        filesystem = s3fs.S3FileSystem(endpoint_url=endpoint)
        filesystem.mkdir("bench")
        store = ArtifactStore("s3://bench/store")
        artifact = make_data(store, *size)
        signed = (filesystem.sign(f"bench/store/{name}") for name in _tars(store))
        compare("S3", artifact, [f"pipe:curl -s '{url}'" for url in signed], args.consumed)


def _tars(store: ArtifactStore) -> list[str]:
    return [f"tars/{name}" for name in sorted(store.list("tars"))]


@contextlib.contextmanager
def s3_server() -> Iterator[str]:
    """Run an S3 server on loopback, in a separate process so that no reader shares its GIL."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(300):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait()


if __name__ == "__main__":
    main()
