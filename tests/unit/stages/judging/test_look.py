"""Looks at held-out prompts: their figures, their prompts, and ranks that share them."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier, Lock, local
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.base.store import Artifact, ArtifactStore
from schemas.config import LookConfig
from schemas.errors import ConfigError
from stages import prompts
from stages.judging import look
from stages.judging.look import HeldOutLook, Seen, figures, look_samples
from stages.ladd.ema import ExponentialAverage
from stages.pictures.samplers import sample_batches
from stages.teachers import open_teacher
from stages.texts.held_out import judged_samples
from tests.support.context import commit, make_context
from tests.support.tiny_sd3 import make_tiny_config

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
    """The embeddings are online: then a look leaves the text encoders loaded, and threads can use
    them.
    """
    sections = {
        "prompts": {"count": 60},
        "eval": {"prompts": 8},
        "encode": {"embeddings": "online"},
    }
    return make_tiny_config(model, Path(url), **sections)


def test_a_look_takes_other_prompts_than_an_evaluation_where_there_are_enough(planned, tiny_sd3):
    url, artifact = planned
    evaluated = {row["prompt_id"] for row in judged_samples(configured(tiny_sd3, url), artifact)}
    samples = look_samples(artifact, 3, seed=0)
    assert len(evaluated) == 8 and len(samples) == 6
    assert not evaluated & {sample["prompt_id"] for sample in samples}
    assert len({sample["seed"] for sample in samples}) == 6


def test_one_prompt_is_too_few(planned):
    with pytest.raises(ConfigError, match=r"distill.look: 1 held-out prompts are too few"):
        look_samples(planned[1], 1, seed=0)


class Ranks:
    """Ranks that are threads of this process. One works at a time, until its next sum: the text
    encoders that they share know no threads.
    """

    def __init__(self, world: int, patch: pytest.MonkeyPatch) -> None:
        self.world, self.here, self.given = world, local(), {}
        self.all_there, self.turn = Barrier(world, timeout=60), Lock()
        patch.setattr(look, "rank_and_world", lambda: (self.here.rank, world))
        patch.setattr(look, "sum_over_ranks", self.sum)

    def sum(self, tensors: list[torch.Tensor]) -> None:
        (tensor,) = tensors
        self.given[self.here.rank] = tensor.clone()
        self.wait()
        tensor.copy_(torch.stack([self.given[rank] for rank in range(self.world)]).sum(0))
        self.wait()

    def wait(self) -> None:
        self.turn.release()
        self.all_there.wait()
        self.turn.acquire()

    def each(self, work: Callable[[int], Any]) -> list[Any]:
        """What the work returns on each rank."""

        def on(rank: int) -> Any:
            self.here.rank = rank
            with self.turn:
                return work(rank)

        with ThreadPoolExecutor(self.world) as pool:
            return list(pool.map(on, range(self.world)))


def test_the_figures_do_not_depend_on_the_number_of_ranks(planned, tiny_sd3, tmp_path, monkeypatch):
    """Five batches: the last round of two ranks has one batch for both."""
    url, artifact = planned
    config = configured(tiny_sd3, url)
    batches = sample_batches(look_samples(artifact, LOOK.prompts, seed=0), LOOK.micro_batch)
    assert len(list(batches)) == 5

    teacher = open_teacher(config.teacher)
    encode, encoded = teacher.encode_prompts, []
    monkeypatch.setattr(teacher, "encode_prompts", lambda p: encoded.append(p) or encode(p))

    def look_of(name: str) -> HeldOutLook:
        context = make_context("distill", config, ArtifactStore(str(tmp_path / name)), [artifact])
        student = teacher.backbone()
        average = ExponentialAverage(student, 0.9)
        return HeldOutLook(context, LOOK, teacher, teacher.backbone(), student, average)

    def take(looks: list[HeldOutLook]) -> list[dict[str, float]]:
        return Ranks(len(looks), monkeypatch).each(lambda rank: looks[rank].take())

    alone, ranks = [look_of("alone")], [look_of("shared"), look_of("shared")]
    found = [*take(alone), *take(ranks), *take(ranks)]
    assert all(figures == found[0] for figures in found) and len(found) == 5
    before = len(encoded)
    assert take(alone) == found[:1]
    assert len(encoded) == before, "prompts are encoded once, and text encoders not loaded again"
    assert found[0]["held_out_diversity"] > 0
