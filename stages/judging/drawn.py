"""The pictures of a system, in files and in memory: the only module that knows a shard's files.

A shard has the files `<shard>.parquet` (samples and scores), `.tar` (the pictures), `.features.npy`
and `.patches.npy`, and `.<space>.npy` for each further feature space; a shard of alike pictures has
only `.features.npy`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from pipeline.base.parquet import Columns, table_bytes
from pipeline.base.shards import ShardWriter, read_tar, write_tar
from pipeline.base.stage import StageContext
from schemas.config import EvalConfig, ScoreConfig
from stages.judging.meter import Measured
from stages.judging.systems import PlannedShard, System, shards_of
from stages.pictures.files import encode_image
from stages.texts.identity import SAMPLE_COLUMNS

_PARQUET, _TAR = ".parquet", ".tar"
_FEATURES, _PATCHES = ".features.npy", ".patches.npy"


@dataclass(frozen=True)
class Drawn:
    """One system's N pictures as numbers; `rows`, `scores` and `features` have the same order."""

    rows: list[dict[str, Any]]
    """The samples, with bucket and category."""
    scores: dict[str, np.ndarray]
    """Values (N,) by score."""
    features: dict[str, np.ndarray]
    """(N, F) by feature space, the one of `eval.features` first."""
    patches: np.ndarray
    """(M, F): features of crops of the pictures, in the first space."""
    patch_owners: np.ndarray
    """(M,): the number of the picture that each crop is of."""
    alike_PSF: np.ndarray | None
    """Features of S pictures of each of P prompts, in the first space; None for the floor."""


def row_columns(scores: Sequence[ScoreConfig]) -> Columns:
    """Columns of the sidecars: the sample, and one column for each score."""
    scored = dict.fromkeys([score.name for score in scores], "float64")
    return {**SAMPLE_COLUMNS, "bucket": "string", "category": "string", **scored}


def put_features(writer: ShardWriter, features: np.ndarray) -> None:
    """Write features (B, F) in the space of `eval.features`."""
    _save(writer.file(_FEATURES), features)


def put_pictures(
    writer: ShardWriter,
    samples: list[dict[str, Any]],
    pictures_BHW3: np.ndarray,
    measured: Measured,
    config: EvalConfig,
) -> None:
    """Write pictures, features, patches, and the scores of each sample."""
    rows = [
        {**sample, **{name: float(values[i]) for name, values in measured.scores.items()}}
        for i, sample in enumerate(samples)
    ]
    writer.file(_PARQUET, table_bytes(rows, row_columns(config.scores)))
    put_features(writer, measured.features[config.features.name])
    for space in config.more_features:
        _save(writer.file(f".{space.name}.npy"), measured.features[space.name])
    _save(writer.file(_PATCHES), measured.patches)
    members = [
        (sample["key"], {"png": encode_image(picture, "png", 100)})
        for sample, picture in zip(samples, pictures_BHW3, strict=True)
    ]
    write_tar(writer.file(_TAR), members)


def read_drawn(context: StageContext, system: System, shards: dict[str, PlannedShard]) -> Drawn:
    """Read everything in a system's shards except the pictures."""

    def load(shard: PlannedShard, ending: str) -> np.ndarray:
        with context.store.local(f"{context.folder}/{shard.name}{ending}") as path:
            array: np.ndarray = np.load(path, allow_pickle=False)
            return array

    wanted = context.config.eval
    endings = {wanted.features.name: _FEATURES}
    endings |= {space.name: f".{space.name}.npy" for space in wanted.more_features}
    rows: list[dict[str, Any]] = []
    parts = []
    for shard in shards_of(shards, system.name, alike=False):
        with context.store.local(f"{context.folder}/{shard.name}{_PARQUET}") as path:
            read = pq.read_table(path).to_pylist()
        scores = {s.name: np.array([row[s.name] for row in read]) for s in wanted.scores}
        features = {name: load(shard, ending) for name, ending in endings.items()}
        parts.append(Measured(scores, features, load(shard, _PATCHES)))
        rows += read
    alike = [load(shard, _FEATURES) for shard in shards_of(shards, system.name, alike=True)]
    return drawn_of(rows, parts, alike, wanted)


def drawn_of(
    rows: list[dict[str, Any]],
    parts: Sequence[Measured],
    alike: Sequence[np.ndarray],
    config: EvalConfig,
) -> Drawn:
    """Join what was measured in parts, in the order of `rows`. `alike` are the features of the
    pictures for the diversity, those of one prompt in a row; empty for the floor.
    """
    crops = [np.full(part.count, len(part.patches) // part.count) for part in parts]
    alike_NF = np.concatenate(alike) if alike else None
    return Drawn(
        rows=rows,
        scores={n: np.concatenate([part.scores[n] for part in parts]) for n in parts[0].scores},
        features={n: np.concatenate([p.features[n] for p in parts]) for n in parts[0].features},
        patches=np.concatenate([part.patches for part in parts]),
        patch_owners=np.repeat(np.arange(len(rows)), np.concatenate(crops)),
        alike_PSF=None
        if alike_NF is None
        else alike_NF.reshape(-1, config.alike_seeds, alike_NF.shape[1]),
    )


def read_pngs(
    context: StageContext, system: System, shards: dict[str, PlannedShard], keys: set[str]
) -> dict[str, bytes]:
    """PNG bytes of a system's pictures of the samples in `keys`, by key."""
    pngs: dict[str, bytes] = {}
    for shard in shards_of(shards, system.name, alike=False):
        if not any(sample["key"] in keys for sample in shard.samples):
            continue
        with context.store.local(f"{context.folder}/{shard.name}{_TAR}") as path:
            pngs |= {k: m["png"] for k, m in read_tar(path, shard.name) if k in keys}
    return pngs


def _save(path: Path, array: np.ndarray) -> None:
    with path.open("wb") as file:
        np.save(file, array.astype(np.float32), allow_pickle=False)
