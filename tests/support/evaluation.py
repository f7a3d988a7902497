"""An `eval` artifact made by hand: each system has a colour of its own, so that a test sees which
system made a picture.
"""

from __future__ import annotations

import io
import tempfile
from pathlib import Path

from PIL import Image

from pipeline.base.parquet import table_bytes
from pipeline.base.shards import write_tar
from pipeline.base.store import Artifact, ArtifactStore
from pipeline.commands.opening import open_config
from pipeline.planning import Selection, make_plan
from schemas.manifest import Environment
from schemas.report import Report, ScoreCard, SystemResult
from tests.support.manifests import manifest_of

COLOURS = {
    "teacher": (200, 40, 40),
    "teacher_4": (120, 120, 40),
    "student_1": (40, 120, 120),
    "student_4": (40, 180, 60),
    "tuned_4": (50, 60, 210),
}
BUCKETS = ("64x64", "48x80")
_CARD = ScoreCard(
    title="t", explanation="e", low=None, high=None, licence="Apache-2.0", weights="none"
)


def system_of(pixel: tuple[int, ...]) -> str:
    """Which system has this colour."""
    return next(name for name, colour in COLOURS.items() if colour == tuple(pixel[:3]))


def picture(system: str, size: tuple[int, int], noise: int = 0) -> bytes:
    """PNG in the system's colour. Some hold more detail and a text chunk, as real files would."""
    from PIL.PngImagePlugin import PngInfo

    image = Image.new("RGB", size, COLOURS[system])
    for i in range(noise):
        image.putpixel((i % size[0], size[1] - 1 - i // size[0]), (i % 256, i * 7 % 256, 0))
    notes = PngInfo()
    notes.add_text("system", system)
    sink = io.BytesIO()
    image.save(sink, "PNG", pnginfo=notes)
    return sink.getvalue()


def make_evaluation(
    store: ArtifactStore, prompts: list[str], key: str = "", systems: tuple[str, ...] = ()
) -> Artifact:
    """Commit an evaluation of these prompts, half of them in each of two buckets. Its key is that
    of the evaluation of preset `shapes`, so that commands find it by `options_for`.
    """
    key = key or _planned_key(store)
    systems = systems or tuple(COLOURS)
    files: dict[str, tuple[int, str]] = {}
    folder = store.folder("eval", key)

    def write(name: str, content: bytes) -> None:
        files[name] = store.write(f"{folder}/{name}", content)

    details: dict[str, dict] = {}
    for system in systems:
        shards = []
        for bucket in BUCKETS:
            width, height = map(int, bucket.split("x"))
            rows = [
                {"key": f"{i:04d}-000", "prompt": p, "width": width, "height": height}
                for i, p in enumerate(prompts)
                if i % len(BUCKETS) == BUCKETS.index(bucket)
            ]
            shard = f"shards/{system}/{bucket}-000000"
            shards.append(shard)
            noise = 900 * (system == "teacher")
            samples = [(r["key"], {"png": picture(system, (width, height), noise)}) for r in rows]
            with tempfile.TemporaryDirectory() as scratch:
                write_tar(Path(scratch) / "tar", samples)
                write(f"{shard}.tar", (Path(scratch) / "tar").read_bytes())
            columns = {"key": "string", "prompt": "string", "width": "int32", "height": "int32"}
            write(f"{shard}.parquet", table_bytes(rows, columns))
        details[system] = {"title": system.replace("_", ", ") + " steps", "shards": shards}
    write("report.json", _report(systems).model_dump_json().encode())
    return store.commit(manifest_of("eval", files, key=key, details={"systems": details}))


def options_for(store: ArtifactStore) -> list[str]:
    """What commands are told so that they find the evaluation."""
    return ["--preset", "shapes", "--set", f"store={store.url}"]


def _planned_key(store: ArtifactStore) -> str:
    config = open_config(preset="shapes", environment={})
    return next(s.key for s in make_plan(config, store, Selection()) if s.name == "eval")


def _report(systems: tuple[str, ...]) -> Report:
    results = [
        SystemResult(
            name=name,
            title=name,
            kind=name.split("_")[0],
            steps=int(name.split("_")[1]) if "_" in name else 28,
            guidance_scale=None,
            scores={},
            by_bucket={},
            by_category={},
            distances={},
            diversity=1.0,
            seconds_per_picture=1.0,
        )
        for name in systems
    ]
    return Report(
        name="test",
        created="2026-01-01T00:00:00+00:00",
        headline="",
        passed=True,
        teacher="shapes (embedded)",
        prompts=1,
        cards={},
        feature_space=_CARD,
        systems=results,
        win_rates=[],
        gates=[],
        curves=[],
        data={},
        tuning={},
        wall=[],
        lineage=[],
        environment=Environment(python="3", packages={}),
    )
