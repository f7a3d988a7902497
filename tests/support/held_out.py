"""An evaluation to come: prompts that are held out, and others that were trained on."""

from __future__ import annotations

from pathlib import Path

from pipeline.base.parquet import table_bytes
from pipeline.base.stage import StageContext
from pipeline.base.store import Artifact, ArtifactStore
from pipeline.commands.opening import open_config
from schemas.manifest import InputRef
from stages.texts.identity import SAMPLE_COLUMNS, prompt_id
from tests.support.context import make_context
from tests.support.manifests import manifest_of

PROMPTS = [f"a {size} {color} ring" for size in ("small", "big") for color in ("red", "blue")]
PROMPTS += [f"a {color} circle left of a ring" for color in ("red", "blue", "white", "green")]
KEY = "k" * 16


def configured(*settings: str):
    return open_config(None, "shapes-smoke", settings, {})


def commit_tables(
    store: ArtifactStore,
    stage: str,
    tables: dict[str, bytes],
    inputs: tuple[Artifact, ...] = (),
    **details,
) -> Artifact:
    folder = store.folder(stage, KEY)
    files = {name: store.write(f"{folder}/{name}", content) for name, content in tables.items()}
    refs = [InputRef(stage=i.manifest.stage, key=i.manifest.key, digest=i.digest) for i in inputs]
    return store.commit(manifest_of(stage, files, key=KEY, inputs=refs, details=details))


def lists(prompts: list[str]) -> bytes:
    columns = {"prompt_id": "string", "prompt": "string"}
    return table_bytes([{"prompt_id": prompt_id(p), "prompt": p} for p in prompts], columns)


def evaluation_context(
    tmp_path: Path, config, trained: list[str], paired: list[str]
) -> StageContext:
    """An evaluation to come: PROMPTS are held out, these others were trained on."""
    store = ArtifactStore(str(tmp_path / "store"))
    rows = [
        {
            "key": f"{prompt_id(p)}-000",
            "prompt_id": prompt_id(p),
            "prompt": p,
            "seed": i,
            "width": 64,
            "height": 64,
        }
        for i, p in enumerate(PROMPTS)
    ]
    prompts = commit_tables(
        store, "prompts", {"held_out.parquet": table_bytes(rows, SAMPLE_COLUMNS)}
    )
    encode = commit_tables(
        store, "encode", {"p.parquet": lists(trained)}, (prompts,), prompts=["p.parquet"]
    )
    student = commit_tables(store, "distill", {}, (prompts, encode))
    pairs = commit_tables(store, "pairs", {"shards/pairs/0.parquet": lists(paired)}, (prompts,))
    tuned = commit_tables(store, "dpo", {}, (prompts, pairs, student))
    return make_context("eval", config, store, (prompts, student, tuned), key="e" * 16)
