"""What trainings leave behind while they run."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from pipeline.store import ArtifactStore
from schemas.errors import ArtifactError
from stages.training_trace import STATE, TRACE, TrainingTrace, fill_checkpoint, resume


@pytest.fixture
def said():
    return []


def make_trace(folder, said, *, rank=0, resumed=None, watch=lambda row: []):
    settings = {
        "store": ArtifactStore(str(folder)),
        "folder": "artifacts/dpo/k",
        "report": lambda *progress: said.append(progress),
    }
    return TrainingTrace(
        SimpleNamespace(rank=rank), settings, resumed or [], total=10, log_every=4, watch=watch
    )


def test_every_update_and_look_is_a_line(tmp_path, said):
    trace = make_trace(tmp_path, said)
    trace.add(1, {"bucket": "64x64", "loss": 0.5})
    trace.add_look(1, {"held_out_loss": 0.25})
    trace.close()
    assert [json.loads(line) for line in trace.lines] == [
        {"step": 1, "bucket": "64x64", "loss": 0.5},
        {"step": 1, "held_out_loss": 0.25},
    ]
    assert list((tmp_path / "artifacts/dpo/k/tensorboard").iterdir())


def test_progress_goes_on_from_the_last_line(tmp_path, said):
    trace = make_trace(tmp_path, said, resumed=['{"step": 3}', '{"step": 3, "held_out_loss": 1}'])
    trace.add(4, {"loss": 1.0})
    trace.add(5, {"loss": 1.0})
    trace.close()
    assert said == [("updates", 3, 10), ("updates", 4, 10)]
    assert len(trace.lines) == 4


def test_one_rank_alone_speaks(tmp_path, said):
    def watch(row):
        return ["too high"] if row["loss"] > 1 else []

    quiet = make_trace(tmp_path, said, rank=1, watch=watch)
    quiet.add(4, {"loss": 2.0})
    assert said == [] and len(quiet.lines) == 1
    assert not (tmp_path / "artifacts").exists()
    loud = make_trace(tmp_path, said, watch=watch)
    loud.add(1, {"loss": 2.0})
    loud.close()
    assert said[-1] == ("warning: too high", 1, 10)


class Counter:
    """A trainer whose state is a number."""

    step = 0

    def save(self, folder):
        folder.mkdir()
        (folder / "step").write_text(str(self.step))

    def load(self, folder):
        from stages.ladd.checkpoint import CheckpointError

        try:
            self.step = int((folder / "step").read_text())
        except ValueError as error:
            raise CheckpointError(f"the checkpoint {folder} cannot be read") from error


class Run:
    def __init__(self, folder):
        self.folder = folder

    def resume_folder(self):
        import contextlib

        return contextlib.nullcontext(self.folder)


def test_a_checkpoint_brings_state_and_lines_back(tmp_path, said):
    trainer, trace = Counter(), make_trace(tmp_path, said)
    trainer.step = 7
    trace.add(7, {"loss": 1.0})
    trace.close()
    checkpoint = tmp_path / "checkpoint"
    checkpoint.mkdir()
    fill_checkpoint(checkpoint, trainer, trace, 0)
    fresh = Counter()
    assert resume(Run(checkpoint), fresh, "dpo") == trace.lines
    assert fresh.step == 7
    assert resume(Run(None), Counter(), "dpo") == []
    other = tmp_path / "of another rank"
    other.mkdir()
    fill_checkpoint(other, trainer, trace, 1)
    assert (other / STATE).exists() and not (other / TRACE).exists()


def test_a_damaged_checkpoint_is_named_with_its_stage(tmp_path):
    (tmp_path / STATE).mkdir()
    (tmp_path / STATE / "step").write_text("oops")
    with pytest.raises(ArtifactError, match=f"dpo: the checkpoint {tmp_path}"):
        resume(Run(tmp_path), Counter(), "dpo")
