"""The loop of one worker of `distill`, without Ray: from an encode artifact to checkpoints, alone
and on two ranks that hold half of each weight.
"""

from __future__ import annotations

import json
import math
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from pipeline.base.course import STATE
from pipeline.base.store import Artifact, ArtifactStore
from schemas.errors import StageFailed
from stages import encode, prompts, synthesize
from stages.judging import look
from stages.ladd import health, trainer
from stages.ladd.health import HealthWatch
from stages.pictures import sample_grids
from stages.teachers.sd3 import SD3Teacher
from stages.training import distill_loop
from stages.training.trace import TRACE
from tests.support.context import commit, make_context
from tests.support.tiny_sd3 import make_tiny_config
from tests.support.training import Run, on_ranks
from tests.support.without_ray import map_in_this_process

pytestmark = pytest.mark.slow

STEPS = 6
LOOK = {
    "every": 2,
    "prompts": 3,
    "scores": [{"name": "layout"}],
    "features": {"name": "judge_features"},
    "micro_batch": 4,
}
SHARDED = {"workers": 2, "shard_over": 2, "shard_teacher": True, "ema_device": "cpu"}


def train(
    model: Path, store: str, artifacts: dict[str, Artifact], run: Run, name: str, **changes: Any
) -> list[dict[str, Any]]:
    """The trace after the loop, from `run`'s checkpoint if it holds one."""
    options = {
        "steps": STEPS,
        "discriminator": {"channels": 8},
        "sample_every": STEPS,
        "checkpoint_every": 3,
        "learning_rate": 1e-3,
        "look": LOOK,
    }
    teacher = changes.pop("teacher", {})
    config = make_tiny_config(model, Path(store), distill=options | changes, teacher=teacher)
    inputs = (artifacts["prompts"], artifacts["encode"])
    run.context = make_context("distill", config, ArtifactStore(config.store), inputs, key=name)
    distill_loop.train(run)
    return [json.loads(line) for line in (run.folder / TRACE).read_text().splitlines()]


def updates_of(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The lines that are no looks."""
    return [row for row in rows if "bucket" in row]


@pytest.fixture(scope="module")
def data(tiny_sd3, tmp_path_factory) -> tuple[str, dict[str, Artifact]]:
    """A store, and the artifacts that training reads."""
    url = str(tmp_path_factory.mktemp("loop") / "store")
    config, store, artifacts = make_tiny_config(tiny_sd3, Path(url)), ArtifactStore(url), {}

    with pytest.MonkeyPatch.context() as patch:
        map_in_this_process(patch)
        for name, module in (("prompts", prompts), ("synthesize", synthesize), ("encode", encode)):
            context = make_context(name, config, store, artifacts.values())
            artifacts[name] = commit(context, module.run(context))
    return url, artifacts


@pytest.fixture(scope="module")
def alone(tiny_sd3, data, tmp_path_factory) -> list[dict[str, Any]]:
    return train(tiny_sd3, *data, Run(tmp_path_factory.mktemp("alone")), "alone")


def test_the_loop_visits_what_the_plan_says_and_draws_at_the_end(alone, data):
    updates = updates_of(alone)
    assert [row["step"] for row in updates] == list(range(1, STEPS + 1))
    assert len({row["student_loss"] for row in updates}) == STEPS
    names = ArtifactStore(data[0]).list("training/distill/of-alone")  # a longer run would show it
    assert f"samples/step-{STEPS:06d}.png" in names


def test_sample_grids_are_drawn_on_the_levels_that_are_trained(
    tiny_sd3, data, tmp_path, monkeypatch
):
    drawn, trained = [], set()
    paint, draw = sample_grids.student_sampler, trainer.draw

    def record(teacher, student, device, sigmas, **options):
        drawn.append(sigmas)
        return paint(teacher, student, device, sigmas, **options)

    def train_at(*arguments, **options):
        draws = draw(*arguments, **options)
        trained.update(draws.student_sigma_B.tolist())
        return draws

    monkeypatch.setattr(sample_grids, "student_sampler", record)
    monkeypatch.setattr(trainer, "draw", train_at)
    thirds = {"probabilities": [0.4, 0.3, 0.3], "warmup_probabilities": [0.4, 0.3, 0.3]}
    student_time = {"grid": [1.0, 0.6, 0.2], **thirds}
    train(tiny_sd3, *data, Run(tmp_path), "levels", student_time=student_time)
    assert {len(sigmas) for sigmas in drawn} == {3, 2, 1}
    assert {sigma for sigmas in drawn for sigma in sigmas} == trained
    assert sorted(trained) == pytest.approx([0.429, 0.818, 1.0], abs=0.003)  # the teacher's shift


def test_looks_show_the_student_next_to_the_teacher_and_change_no_update(
    alone, tiny_sd3, data, tmp_path
):
    looks = [row for row in alone if "bucket" not in row]
    assert [row["step"] for row in looks] == [2, 4, 6]
    assert len({row["look"] for row in looks}) == 1
    figures = [{n: v for n, v in row.items() if n != "look"} for row in looks]
    assert all(math.isfinite(value) for row in figures for value in row.values())
    of_teacher = [{n: v for n, v in row.items() if n.startswith("teacher_")} for row in looks]
    assert of_teacher[0] == of_teacher[1] == of_teacher[2] != {}
    assert len({row["held_out_distance"] for row in looks}) == 3
    assert train(tiny_sd3, *data, Run(tmp_path), "blind", look=None) == updates_of(alone)


@pytest.fixture
def die_at_first_save(monkeypatch):
    """A context in which a training ends as soon as its first checkpoint is saved."""
    save = Run.save

    def save_and_die(run, *saved, **where):
        save(run, *saved, **where)
        raise KeyboardInterrupt

    @contextmanager
    def dying():
        with monkeypatch.context() as patch:
            patch.setattr(Run, "save", save_and_die)
            yield

    return dying


def test_a_loop_that_was_cut_goes_on_where_its_checkpoint_is(
    alone, tiny_sd3, data, tmp_path, die_at_first_save, monkeypatch
):
    """In the middle of an epoch: the reader must begin at the batch of the checkpoint."""
    with die_at_first_save(), pytest.raises(KeyboardInterrupt):
        train(tiny_sd3, *data, Run(tmp_path), "cut")
    assert len((tmp_path / TRACE).read_text().splitlines()) == 4
    monkeypatch.delattr(look, "teacher_sampler")  # what was seen of it is kept
    assert train(tiny_sd3, *data, Run(tmp_path), "cut") == alone


@pytest.fixture
def sick(monkeypatch):
    """Every window shows a sign; its last update comes behind the first checkpoint."""
    monkeypatch.setattr(health, "WINDOW", 4)
    monkeypatch.setattr(HealthWatch, "_signs", lambda watch: [health._COLLAPSE])


def test_at_a_sign_the_run_stops_if_it_is_told_to(alone, sick, tiny_sd3, data, tmp_path):
    with pytest.raises(StageFailed, match=r"stopped after update 4.*on_collapse=warn goes on"):
        train(tiny_sd3, *data, Run(tmp_path), "stopped", on_collapse="stop")
    assert train(tiny_sd3, *data, Run(tmp_path), "stopped") == alone


def test_lowered_rates_survive_a_kill(alone, sick, tiny_sd3, data, tmp_path, die_at_first_save):
    lowered = train(tiny_sd3, *data, Run(tmp_path / "whole"), "whole", on_collapse="lower_rate")
    same = [row == expected for row, expected in zip(lowered, alone, strict=True)]
    assert same == [True] * 7 + [False] * 2  # the last update and its look
    with die_at_first_save(), pytest.raises(KeyboardInterrupt):
        train(tiny_sd3, *data, Run(tmp_path / "cut"), "cut", on_collapse="lower_rate")
    assert train(tiny_sd3, *data, Run(tmp_path / "cut"), "cut", on_collapse="lower_rate") == lowered


def test_signals_are_measured_beside_the_trace(alone, data):
    store = ArtifactStore(data[0])
    rows = [json.loads(x) for x in store.read("artifacts/distill/alone/signals.jsonl").splitlines()]
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    assert all(row["samples_per_second"] > 0 and 0 <= row["data_wait"] < 1 for row in rows)
    assert all(0 < row["tflops_per_worker"] < 100 and row["memory_gb"] > 0.01 for row in rows)
    assert rows[-1]["student_rate"] == 1e-3 and rows[-1]["heads_rate"] == 1e-4


def test_a_low_precision_teacher_judges_in_the_precision_of_the_training(tiny_sd3, data, tmp_path):
    """Bug: load the frozen copy in the teacher's dtype; without autocast the two do not meet."""
    low = train(tiny_sd3, *data, Run(tmp_path), "low", teacher={"dtype": "bfloat16"})
    assert all(math.isfinite(row["student_loss"]) for row in updates_of(low))


def test_with_adapters_the_weights_are_loaded_once(tiny_sd3, data, tmp_path, monkeypatch):
    loaded, load = [], SD3Teacher.backbone

    def count(self, **options):
        loaded.append(options)
        return load(self, **options)

    monkeypatch.setattr(SD3Teacher, "backbone", count)
    adapted = {"lora": {"rank": 2}, "frozen_weights": "int8", "checkpoint_blocks": True}
    rows = train(tiny_sd3, *data, Run(tmp_path), "adapted", **adapted)
    assert len(loaded) == 1
    assert all(math.isfinite(row["student_loss"]) for row in updates_of(rows))


def _rank(rank: int, model: Path, data: tuple, folder: Path) -> None:
    train(model, *data, Run(folder, rank, 2), "two", **SHARDED)


def test_two_ranks_with_half_of_each_weight_follow_the_trace_of_one(
    alone, tiny_sd3, data, tmp_path
):
    on_ranks(2, _rank, tiny_sd3, data, tmp_path)
    found = [json.loads(line) for line in (tmp_path / TRACE).read_text().splitlines()]
    assert len(found) == len(alone)
    for row, expected in zip(found, alone, strict=True):
        wanted = dict(expected)
        for words in row.keys() & {"bucket", "look"}:
            assert row.pop(words) == wanted.pop(words)
        # A look judges pictures of 8 bits, in which a pixel that is rounded otherwise shows.
        accuracy = {"abs": 0.01} if "held_out_layout" in row else {"rel": 2e-3, "abs": 2e-4}
        assert row == pytest.approx(wanted, **accuracy)
    assert len(list((tmp_path / STATE).glob("*.safetensors"))) == 2
