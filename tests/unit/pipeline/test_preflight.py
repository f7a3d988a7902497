"""Everything that can be known is looked at before the first sample, and said at once."""

from __future__ import annotations

import json
import re
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pytest

from pipeline import cli, devices, preflight
from pipeline.base.resources import Node
from pipeline.base.stage import Stage
from pipeline.planning import Selection, make_plan
from pipeline.preflight import require_ready
from pipeline.rates import look_ahead
from schemas.errors import ConfigError, LaddError
from stages.teachers.hub_models import HubModel


@pytest.fixture
def nothing_is_written(tmp_path):
    """No stage has written a file, and no run has begun."""
    yield
    assert not (tmp_path / "store").exists() or not list((tmp_path / "store").rglob("*"))


def ready(config, store, **options) -> None:
    stages = make_plan(config, store, Selection())
    require_ready(config, store, stages, look_ahead(config, store, stages), **options)


def changed(config, **sections):
    """The configuration with other fields of its sections."""
    update = {
        name: getattr(config, name).model_copy(update=fields) for name, fields in sections.items()
    }
    return config.model_copy(update=update)


def test_a_stage_that_need_not_run_is_neither_loaded_nor_checked(config, store, monkeypatch):
    done = [replace(stage, action="done") for stage in make_plan(config, store, Selection())]
    monkeypatch.setattr(Stage, "module", lambda self: pytest.fail(f"{self.name} was loaded"))
    require_ready(config, store, done, None)


def test_what_is_right_passes(config, store):
    ready(config, store)


# Workers


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        ({"distill": {"workers": 64, "global_batch": 64}}, "distill.workers: 64 workers"),
        ({"dpo": {"workers": 64, "global_batch": 64}}, "dpo.workers: 64 workers"),
        ({"distill": {"cpus_per_worker": 512}}, "each with 512 CPUs, do not fit"),
        (
            {"synthesize": {"pool": {"gpus_per_worker": 1}}},
            "synthesize.pool: a worker with a GPU does not fit",
        ),
        (
            {"eval": {"pool": {"workers": 2, "cpus_per_worker": 512}}},
            "eval.pool: a worker with 512 CPUs does not fit",
        ),
    ],
)
def test_workers_that_will_never_start(refused, sections, said, monkeypatch, nothing_is_written):
    monkeypatch.setattr(devices, "gpu_names", lambda: [])
    code, text = refused("run", **sections)
    assert code == 2 and said in text


def test_workers_of_a_stage_that_does_not_run_are_nobodys_business(config, store):
    wide = changed(config, dpo={"workers": 64, "global_batch": 64})
    stages = make_plan(wide, store, Selection(until="encode"))
    require_ready(wide, store, stages, look_ahead(wide, store, stages))


def test_a_cluster_may_grow(config, store):
    joined = changed(config, ray={"address": "auto"}, distill={"workers": 64, "global_batch": 64})
    ready(joined, store)


def test_a_cluster_without_room_for_a_later_training_is_warned_of(config, monkeypatch):
    nodes = [Node({"CPU": 8.0, "GPU": 2.0})]
    monkeypatch.setattr(preflight, "cluster_nodes", lambda: nodes)
    said: list[tuple[str, str]] = []
    wide = changed(config, distill={"workers": 4, "global_batch": 32})
    running = ("synthesize", "distill", "dpo")
    preflight.tell_of_cluster(wide, running, lambda *text: said.append(text))
    assert not said  # this machine's Ray is checked otherwise
    joined = changed(wide, ray={"address": "auto"})
    preflight.tell_of_cluster(joined, running, lambda *text: said.append(text))
    ((stage, text),) = said
    assert stage == "distill"
    assert "has room for 2 of 4 workers now, each with 4 CPUs and a GPU; when" in text


# Room


def test_memory_of_the_card(config, store):
    small = changed(config, costs={"device": "nvidia-l4"}, distill={"global_batch": 60_000})
    with pytest.raises(ConfigError, match=r"^distill: by the estimate .* nvidia-l4 has 23.6\d? GB"):
        ready(small, store)
    ready(changed(small, costs={"device": "nvidia-l4", "check_room": False}), store)


def test_the_largest_micro_batch_that_fits_is_named(config, store):
    """And it fits, and the next larger one does not."""
    wide = {"global_batch": 60_000, "checkpoint_blocks": True}
    small = changed(config, costs={"device": "nvidia-l4"}, distill=wide)
    with pytest.raises(ConfigError) as refused:
        ready(small, store)
    size = int(
        re.search(r"lower distill\.micro_batch to (\d+), set distill", str(refused.value))[1]
    )
    larger = next(n for n in range(size + 1, 60_001) if 60_000 % n == 0)
    ready(changed(small, distill=wide | {"micro_batch": size}), store)
    with pytest.raises(ConfigError, match=f"lower distill.micro_batch to {size},"):
        ready(changed(small, distill=wide | {"micro_batch": larger}), store)
    pool = changed(config, costs={"device": "nvidia-l4"}, eval={"micro_batch": 200_000})
    with pytest.raises(ConfigError, match=r"eval: .* lower eval\.micro_batch to \d+, or set"):
        ready(pool, store)


def test_memory_of_this_machine(config, store, monkeypatch):
    monkeypatch.setattr(devices, "gpu_names", lambda: [])
    monkeypatch.setattr(preflight, "machine_memory", lambda: 400_000_000)
    monkeypatch.setattr("stages.teachers.sd3_memory._cpu_has_bfloat16", lambda: True)
    with pytest.raises(ConfigError, match=r"distill: by the estimate its workers need [\d.]+ MB"):
        ready(config, store)


def disk(monkeypatch, left: dict[str, int]) -> None:
    """Disks with so many bytes left, by what their folder's name holds."""

    def usage(folder):
        free = [size for name, size in left.items() if name in str(folder)]
        return SimpleNamespace(free=free[0] if free else 1 << 50, total=1 << 50)

    monkeypatch.setattr(preflight.shutil, "disk_usage", usage)


@pytest.mark.parametrize("what", ["store", "TMPDIR"])
def test_room_on_the_disks(config, store, tmp_path, monkeypatch, what):
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr(preflight.tempfile, "gettempdir", lambda: f"{tmp_path}/scratch")
    folder = "scratch" if what == "TMPDIR" else str(tmp_path)
    disk(monkeypatch, {"scratch": 1 << 50, folder: 1000})
    with pytest.raises(ConfigError, match=rf"^{what}: .* has 1 kB left; make room, "):
        ready(config, store)


def test_what_is_in_the_store_already_needs_no_room(config, store, tmp_path, monkeypatch):
    stages = make_plan(config, store, Selection(until="synthesize"))
    ahead = look_ahead(config, store, stages)
    needed = sum(found.store_bytes for found in ahead.known)
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr(preflight.tempfile, "gettempdir", lambda: f"{tmp_path}/scratch")
    disk(monkeypatch, {"scratch": 1 << 50, str(tmp_path): int(needed * 0.9)})
    with pytest.raises(ConfigError, match=r"^store: "):
        require_ready(config, store, stages, ahead)
    shard = store.folder("synthesize", stages[1].key) + "/shards/64x64/000000.tar"
    store.write(shard, bytes(int(needed * 0.2)))
    require_ready(config, store, stages, ahead)


def test_a_store_that_cannot_be_written(refused, tmp_path):
    (tmp_path / "store").write_text("a file in the way")
    code, text = refused("run")
    assert code == 4, text
    assert "store" in text


# Files of prompts, pairs and models


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        ({"prompts": {"sources": [{"kind": "file", "url": "no.txt"}]}}, "there is no file no.txt"),
        ({"pairs": {"url": "no.parquet"}}, "there is no file no.parquet"),
        ({"eval": {"url": "no.jsonl"}}, "there is no file no.jsonl"),
        ({"eval": {"features": {"name": "inception_features"}}}, "inception_features.model is emp"),
        ({"pairs": {"reward": {"name": "hps"}}}, "scores.hps.model is empty"),
        ({"dpo": {"chooser": {"name": "hps", "model": "./no"}}}, "there is no folder ./no"),
        ({"teacher": {"model": "nobody/no-such-model"}}, "nor a model that the hub provides"),
        ({"eval": {"scores": [{"name": "clip_score"}]}}, "openai/clip-vit-large-patch14"),
        ({"distill": {"init": "nobody/no-such-start"}}, "distill.init: 'nobody/no-such-start'"),
    ],
)
def test_files_that_are_not_there(refused, sections, said, nothing_is_written):
    code, text = refused("run", **sections)
    assert code == 2 and said in text, text


@pytest.mark.parametrize("column", ["prompts", "pairs", "eval"])
def test_columns_that_are_not_there(refused, tmp_path, column, nothing_is_written):
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"something": ["else"]}), rows)
    sections = {
        "prompts": {"prompts": {"sources": [{"kind": "file", "url": str(rows), "column": "text"}]}},
        "pairs": {"pairs": {"url": str(rows)}},
        "eval": {"eval": {"url": str(rows), "column": "text"}},
    }
    code, text = refused("run", **sections[column])
    assert code == 2 and column in text and str(rows) in text, text


def test_all_that_is_missing_is_said_at_once(
    tiny_sd3, tmp_path, monkeypatch, capsys, nothing_is_written
):
    """Over all stages, each thing once."""
    arguments = ["run", "--preset", "shapes", "--set", f"store={tmp_path}/store"]
    for setting in (
        "prompts.sources=[{kind: file, url: no.txt}]",
        "pairs.reward.name=hps",
        "dpo.chooser.name=clip_score",
        "eval.scores=[{name: clip_score}, {name: image_reward}]",
        "distill.workers=64",
        "distill.global_batch=64",
    ):
        arguments += ["--set", setting]
    monkeypatch.setattr("sys.argv", ["ladd-pipeline", *arguments])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    said = capsys.readouterr().err
    assert stop.value.code == 2
    assert "error: 5 problems must be fixed before anything starts:" in said
    for number, word in enumerate(
        ["there is no file no.txt", "hps.model is empty", "image_reward.model is empty"], 1
    ):
        assert re.search(rf"^  {number}\. .*{word}", said, re.MULTILINE), said
    assert said.count("clip-vit-large-patch14") == 1  # which two stages need
    assert "64 workers" in said


# The hub


class _Hub(BaseHTTPRequestHandler):
    """A hub with a model that is open, one that is gated, and one without weights."""

    def do_GET(self) -> None:
        model = "/".join(self.path.split("?")[0].removeprefix("/api/models/").split("/")[:2])
        if model == "some/gated":
            return self._answer(403, {"error": "no"}, {"X-Error-Code": "GatedRepo"})
        if model == "some/gone":
            return self._answer(404, {"error": "no"}, {"X-Error-Code": "RepoNotFound"})
        if model == "some/busy":
            return self._answer(503, {"error": "later"})
        names = {"config.json": 700, "model.safetensors": 10**9, "README.md": 5, "tf.h5": 10**9}
        if model == "some/pickle":
            names = {"config.json": 700, "pytorch_model.bin": 10**9}
        rows = [{"rfilename": name, "size": size} for name, size in names.items()]
        return self._answer(200, {"id": model, "sha": "0" * 40, "siblings": rows})

    def _answer(self, status: int, content: object, headers: dict[str, str] | None = None) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub(tmp_path, monkeypatch):
    from huggingface_hub import constants

    server = ThreadingHTTPServer(("127.0.0.1", 0), _Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    yield
    server.shutdown()
    server.server_close()


def clip(model: str) -> HubModel:
    kinds = ("*.json", "*.safetensors")
    return HubModel("eval.scores", model, None, patterns=kinds, required=("*.safetensors",))


def test_the_hub_says_what_is_to_be_downloaded(hub):
    assert clip("some/model").to_download() == 10**9 + 700


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("some/gated", "eval.scores: 'some/gated' is gated: accept its licence"),
        ("some/gone", "eval.scores: 'some/gone' is neither a local folder nor a model"),
        ("some/busy", "eval.scores: the hub cannot serve 'some/busy' right now"),
        ("some/pickle", "eval.scores: 'some/pickle' on the hub has no file [*].safetensors"),
    ],
)
def test_a_model_that_cannot_be_had(hub, model, said):
    with pytest.raises(LaddError, match=said):
        clip(model).to_download()


def test_what_is_in_the_cache_is_not_asked_for(tiny_sd3, tmp_path, monkeypatch):
    import shutil

    from huggingface_hub import constants

    from schemas.config import TeacherConfig
    from stages.teachers import teacher_models

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    place = tmp_path / "models--someone--model"
    shutil.copytree(tiny_sd3, place / "snapshots" / ("0" * 40))
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text("0" * 40)
    monkeypatch.setattr("huggingface_hub.HfApi", lambda: pytest.fail("the hub was asked"))
    (model,) = teacher_models(TeacherConfig(model="someone/model", use_t5=False))
    assert model.to_download() == 0
    (place / "snapshots" / ("0" * 40) / "vae" / "config.json").unlink()
    monkeypatch.undo()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ConfigError, match=r"teacher.model: 'someone/model' .*HF_HUB_OFFLINE"):
        model.to_download()  # a part is missing, and the hub cannot be asked


def test_room_for_what_is_downloaded(config, store, hub, tmp_path, monkeypatch):
    wanted = changed(config, eval={"scores": [{"name": "clip_score", "model": "some/model"}]})
    wanted = type(config).model_validate(wanted.model_dump(mode="json"))
    told: list[str] = []
    (tmp_path / "cache").mkdir()
    disk(monkeypatch, {str(tmp_path / "cache"): 10**6, str(tmp_path): 1 << 50})
    with pytest.raises(ConfigError, match=r"^HF_HOME: .* needs 1 GB in .*cache.* HF_HOME to a"):
        ready(wanted, store, hub=told.append)
    assert told == ["some/model: 1 GB are downloaded from the hub"]
