"""What trainings leave behind while they run."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace

import pytest

from pipeline.base.course import STATE
from pipeline.base.store import ArtifactStore
from schemas.errors import ArtifactError, StageFailed
from stages.ladd.health import Sign
from stages.training.trace import SIGNALS, TRACE, TrainingTrace, fill_checkpoint, resume
from tests.support.context import make_context
from tests.support.tiny_sd3 import make_tiny_config


@pytest.fixture
def said():
    return []


def context_of(folder, said):
    """Of `dpo`; what it reports and warns of is kept in `said`."""
    return make_context(
        "dpo",
        make_tiny_config(folder, folder),
        ArtifactStore(str(folder)),
        report=lambda *progress: said.append(progress),
        warn=said.append,
        note=said.append,
    )


class Watch:
    """Finds a sign in a loss above 1, and remembers all that it has seen."""

    def __init__(self):
        self.seen = []

    def observe(self, metrics):
        self.seen.append(metrics)
        return [Sign("high", "too high")] if metrics.get("loss", 0) > 1 else []


def make_trace(folder, said, *, rank=0, resumed=None, watch=None, **changes):
    run = SimpleNamespace(rank=rank, context=context_of(folder, said))
    options = {"total": 10, "log_every": 4, "watch": watch or Watch(), "max_skipped": 2} | changes
    return TrainingTrace(run, resumed or [], **options)


def test_every_update_and_look_is_a_line(tmp_path, said):
    trace = make_trace(tmp_path, said)
    trace.add(1, {"bucket": "64x64", "loss": 0.5})
    trace.add_look(1, {"look": "a1", "held_out_loss": 0.25})
    trace.close()
    assert said[-1] == "look after update 1: held out loss 0.25"
    assert [json.loads(line) for line in trace.lines] == [
        {"step": 1, "bucket": "64x64", "loss": 0.5},
        {"step": 1, "look": "a1", "held_out_loss": 0.25},
    ]
    assert list((tmp_path / "artifacts/dpo/k/tensorboard").iterdir())


def test_a_look_may_show_a_sign(tmp_path, said):
    trace = make_trace(tmp_path, said)
    (sign,) = trace.add_look(1, {"look": "a1", "loss": 2.0})
    trace.close()
    assert sign.name == "high" and "too high" in str(said)


def test_progress_goes_on_from_the_last_line(tmp_path, said):
    trace = make_trace(tmp_path, said, resumed=['{"step": 3}', '{"step": 3, "held_out_loss": 1}'])
    trace.add(4, {"loss": 1.0})
    trace.add(5, {"loss": 1.0})
    trace.close()
    assert said == [("updates", 3, 10), ("updates", 4, 10)]
    assert len(trace.lines) == 4


def test_one_rank_alone_speaks(tmp_path, said):
    quiet = make_trace(tmp_path, said, rank=1)
    quiet.add(4, {"loss": 2.0})
    assert said == [] and len(quiet.lines) == 1
    assert not (tmp_path / "artifacts").exists()
    loud = make_trace(tmp_path, said)
    assert [sign.name for sign in loud.add(1, {"loss": 2.0})] == ["high"]
    loud.close()
    assert said[-1] == "too high"


NAN = {"bucket": "64x64", "loss": math.nan, "grad_norm": 1.0, "skipped": 1.0}


def test_a_skipped_update_leaves_a_mark_and_too_many_in_a_row_end_the_run(tmp_path, said):
    trace = make_trace(tmp_path, said)
    for step, metrics in enumerate((NAN, {"bucket": "64x64", "loss": 0.5}, NAN, NAN), 1):
        trace.add(step, metrics)
    assert [json.loads(line) for line in trace.lines[1:3]] == [
        {"step": 2, "bucket": "64x64", "loss": 0.5},
        {"step": 3, "bucket": "64x64", "skipped": 1.0},
    ]
    told = [text for text in said if "is skipped" in text]
    assert [text.split()[1] for text in told] == ["1", "3"]  # the third of all is not worth a word
    assert "number 2 of this training: loss is not a finite number" in told[1]
    with pytest.raises(StageFailed, match=r"dpo: update 5: loss is not.*after 3 such"):
        trace.add(5, NAN)
    resumed = make_trace(tmp_path, said, resumed=trace.lines[:4])
    with pytest.raises(StageFailed, match="update 5"):
        resumed.add(5, NAN)


def test_a_resumed_watch_has_seen_what_an_undisturbed_one_has(tmp_path, said):
    watch, resumed = Watch(), Watch()
    trace = make_trace(tmp_path, said, watch=watch)
    trace.add(1, {"bucket": "64x64", "loss": 0.1 + 0.2})
    trace.add(2, {"bucket": "64x64", "loss": 3.0})
    trace.add_look(2, {"held_out_loss": 0.25})
    trace.add(3, NAN)
    warned = said.count("too high")
    make_trace(tmp_path, said, watch=resumed, resumed=trace.lines)
    for seen, expected in zip(resumed.seen, watch.seen, strict=True):
        assert {**seen, "step": 0} == {**expected, "step": 0}
    assert said.count("too high") == warned == 1


def test_signals_of_a_killed_start_that_are_measured_again_stand_once(tmp_path, said):
    def measured(speed):
        return lambda: {"samples_per_second": speed}

    context, checkpoint = context_of(tmp_path, said), tmp_path / "checkpoint"
    checkpoint.mkdir()
    killed = make_trace(tmp_path, said, log_every=1, signals=measured(1.0))
    for step in (1, 2, 3):
        killed.add(step, {"loss": 0.5})
        if step == 2:
            lines = list(killed.lines)
    killed.publish()
    resumed = make_trace(tmp_path, said, log_every=1, signals=measured(2.0), resumed=lines)
    resumed.add(3, {"loss": 0.5})
    resumed.close()
    content = context.store.read(f"{context.folder}/{SIGNALS}").decode()
    assert [json.loads(line) for line in content.splitlines()] == [
        {"step": step, "samples_per_second": speed} for step, speed in ((1, 1), (2, 1), (3, 2))
    ]
    assert all("samples_per_second" not in line for line in resumed.lines)


class Counter:
    """A trainer whose state is a number."""

    step = 0

    def save(self, folder):
        folder.mkdir(parents=True)
        (folder / "step").write_text(str(self.step))

    def load(self, folder):
        from stages.ladd.checkpoint import CheckpointError

        try:
            self.step = int((folder / "step").read_text())
        except ValueError as error:
            raise CheckpointError(f"the checkpoint {folder} cannot be read") from error


class Run:
    rank = 0

    def __init__(self, context, *folders):
        self.context, self.folders = context, folders

    def checkpoint_folders(self):
        yield from self.folders


def test_a_checkpoint_brings_state_and_lines_back(tmp_path, said):
    trainer, trace = Counter(), make_trace(tmp_path, said)
    context = context_of(tmp_path, said)
    trainer.step = 7
    trace.add(7, {"loss": 1.0})
    trace.close()
    checkpoint = tmp_path / "checkpoint"
    checkpoint.mkdir()
    fill_checkpoint(checkpoint, trainer, trace, 0)
    fresh = Counter()
    assert resume(Run(context, checkpoint), fresh) == trace.lines
    assert fresh.step == 7
    assert resume(Run(context), Counter()) == []
    other = tmp_path / "of another rank"
    other.mkdir()
    fill_checkpoint(other, trainer, trace, 1)
    assert (other / STATE).exists() and not (other / TRACE).exists()


@pytest.fixture
def damaged(tmp_path):
    folder = tmp_path / "damaged"
    (folder / STATE).mkdir(parents=True)
    (folder / STATE / "step").write_text("oops")
    return folder


def test_behind_a_damaged_checkpoint_the_one_before_it_is_taken(tmp_path, damaged, said):
    whole, trainer = tmp_path / "whole", Counter()
    trainer.step = 3
    trainer.save(whole / STATE)
    (whole / TRACE).write_text('{"step": 3}\n')
    fresh = Counter()
    assert resume(Run(context_of(tmp_path, said), damaged, whole), fresh) == ['{"step": 3}']
    assert fresh.step == 3
    assert [f"the checkpoint {damaged / STATE}" in text for text in said] == [True]


def test_where_all_checkpoints_are_damaged_the_error_says_how_to_begin_anew(damaged, said):
    with pytest.raises(ArtifactError, match=f"dpo: the checkpoint {damaged}.*--force dpo"):
        resume(Run(context_of(damaged.parent, said), damaged), Counter())


@pytest.mark.parametrize("trace", [None, b"", b"\0" * 12, b'{"step": 3}\n{"st', b"[]\n", b"\xff\n"])
def test_a_checkpoint_with_a_damaged_trace_is_damaged(tmp_path, said, trace):
    """Bug: read its last line as JSON with a step; then each resumed run ends with a traceback."""
    folders, trainer = [tmp_path / "latest", tmp_path / "before"], Counter()
    for trainer.step, folder in zip((6, 3), folders, strict=True):
        trainer.save(folder / STATE)
        (folder / TRACE).write_text(f'{{"step": {trainer.step}}}\n')
    if trace is None:
        (folders[0] / TRACE).unlink()
    else:
        (folders[0] / TRACE).write_bytes(trace)
    fresh = Counter()
    assert resume(Run(context_of(tmp_path, said), *folders), fresh) == ['{"step": 3}']
    assert fresh.step == 3
    assert len(said) == 1 and "trace.jsonl" in said[0] and "trying the previous one" in said[0]


def test_tensorboard_goes_through_the_store_where_that_is_no_folder(tmp_path, said):
    """Bug: let TensorBoard write there by itself, with keys and endpoint that it finds alone."""
    store = ArtifactStore(f"memory://{tmp_path.name}/odd [letters]#1")
    config = make_tiny_config(tmp_path, tmp_path)
    context = make_context("dpo", config, store, report=lambda *_: None, warn=said.append)
    run = SimpleNamespace(rank=0, context=context)
    trace = TrainingTrace(run, [], total=10, log_every=1, watch=Watch(), max_skipped=0)
    trace.add(1, {"loss": 0.5})
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    fill_checkpoint(folder, Counter(), trace, 0)
    (name,) = store.list("artifacts/dpo/k/tensorboard")
    size = store.list("artifacts/dpo/k/tensorboard")[name]
    trace.add(2, {"loss": 0.25})
    trace.close()
    assert store.list("artifacts/dpo/k/tensorboard")[name] > size > 0
