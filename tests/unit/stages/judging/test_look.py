"""Looks at held-out prompts: their figures, their prompts, and ranks that share them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from pipeline.base.store import Artifact, ArtifactStore
from schemas.config import LookConfig
from schemas.errors import ConfigError
from stages import prompts
from stages.judging.look import HeldOutLook, Seen, figures, look_samples
from stages.ladd.ema import ExponentialAverage
from stages.teachers import open_teacher
from stages.texts.held_out import chosen_samples
from tests.support.context import commit, make_context
from tests.support.tiny_sd3 import make_tiny_config
from tests.support.training import on_ranks

LOOK = LookConfig.model_validate(
    {
        "prompts": 7,
        "scores": [{"name": "layout"}],
        "features": {"name": "judge_features"},
        "micro_batch": 3,
    }
)


def seen(seed: int, *, spread: float = 1.0, shift: float = 0.0) -> Seen:
    """40 prompts, each with a place of its own in 8 dimensions; `spread` apart within a prompt."""
    places = np.random.default_rng(0).normal(size=(40, 1, 8))
    within = np.random.default_rng(seed).normal(size=(40, 2, 8))
    features = places + spread * within + shift
    return Seen(features[None, :, :, 0], features)


def test_a_student_that_draws_as_the_teacher_does_has_exactly_its_figures():
    found = figures(seen(1), seen(1), LOOK)
    assert found["held_out_distance"] == found["teacher_distance"]
    assert found["held_out_layout"] == found["teacher_layout"]
    assert found["held_out_diversity"] == 1


def test_a_student_of_the_teachers_distribution_is_at_the_floor_and_another_far_from_it():
    """Over 20 students, so that chance alone does not decide."""
    students = [figures(seen(n), seen(1000 + n), LOOK) for n in range(20)]
    floor = np.array([row["teacher_distance"] for row in students])
    alike = np.array([row["held_out_distance"] for row in students])
    assert abs(alike.mean()) < 4 * floor.std() / 20**0.5
    assert figures(seen(1, shift=0.5), seen(2), LOOK)["held_out_distance"] > 8 * floor.std()


@pytest.mark.parametrize("spread", [0.0, 0.5])
def test_diversity_is_a_share_of_the_teachers(spread):
    found = figures(seen(1, spread=spread), seen(1), LOOK)
    assert found["held_out_diversity"] == pytest.approx(spread)


@pytest.fixture(scope="module")
def planned(tiny_sd3, tmp_path_factory) -> tuple[str, Artifact]:
    """A store, and its prompts: 12 are held out."""
    url = str(tmp_path_factory.mktemp("look") / "store")
    config = configured(tiny_sd3, url)
    context = make_context("prompts", config, ArtifactStore(url))
    return url, commit(context, prompts.run(context))


def configured(model: Path, url: str):
    return make_tiny_config(model, Path(url), prompts={"count": 60}, eval={"prompts": 8})


def test_a_look_takes_other_prompts_than_an_evaluation_where_there_are_enough(planned, tiny_sd3):
    url, artifact = planned
    evaluated = {row["prompt_id"] for row in chosen_samples(configured(tiny_sd3, url), artifact)}
    samples = look_samples(artifact, 3, seed=0)
    assert len(evaluated) == 8 and len(samples) == 6
    assert not evaluated & {sample["prompt_id"] for sample in samples}
    assert len({sample["seed"] for sample in samples}) == 6


def test_one_prompt_is_too_few(planned):
    with pytest.raises(ConfigError, match=r"distill.look: 1 held-out prompts are too few"):
        look_samples(planned[1], 1, seed=0)


def take(rank: int, model: Path, planned: tuple[str, Artifact], folder: Path) -> None:
    url, artifact = planned
    config = configured(model, url)
    teacher = open_teacher(config.teacher)
    frozen, student = teacher.backbone(), teacher.backbone()
    context = make_context("distill", config, ArtifactStore(str(folder)), [artifact])
    look = HeldOutLook(context, LOOK, teacher, frozen, student, ExponentialAverage(student, 0.9))
    (folder / f"{rank}.json").write_text(json.dumps([look.take(), look.take()]))


@pytest.mark.slow
def test_the_figures_do_not_depend_on_the_number_of_ranks(planned, tiny_sd3, tmp_path):
    """Five batches: the last round of two ranks has one batch for both."""
    alone, shared = tmp_path / "alone", tmp_path / "shared"
    for folder in (alone, shared):
        folder.mkdir()
    take(0, tiny_sd3, planned, alone)
    on_ranks(2, take, tiny_sd3, planned, shared)
    texts = {path.read_text() for path in tmp_path.glob("*/*.json")}
    assert len(list(shared.glob("*.json"))) == 2 and len(texts) == 1
    first, second = json.loads(texts.pop())
    assert first == second and first["held_out_diversity"] > 0
