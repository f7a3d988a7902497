"""Which checkpoint an artifact of `distill` is made from: the last, or that of the best look."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.base.checkpoints import Trained, folder_of, keep_best
from pipeline.base.course import Course, saved_in
from pipeline.base.stage import StageContext, digest_of
from schemas.base import identity_of
from schemas.config import DistillConfig, LookConfig
from schemas.errors import StageFailed
from stages.judging.look import HELD_OUT
from stages.scores import card_of
from stages.training.trace import TRACE

_MARK = "look"


def marked(look: LookConfig) -> dict[str, str]:
    """What a look's line says of its configuration: figures of one mark can be compared."""
    return {_MARK: digest_of(identity_of(look.model_copy(update={"every": 1})))[:8]}


def best_update(lines: Sequence[str], config: DistillConfig) -> int | None:
    """The update of a trace whose look is the best of those with a checkpoint, if there is one."""
    for row in ranked_looks(lines, config):
        if row["step"] % config.checkpoint_every == 0:
            return int(row["step"])
    return None


def ranked_looks(lines: Sequence[str], config: DistillConfig) -> list[dict[str, Any]]:
    """The looks of a trace that are as `config` says: the best first, of equals the earliest."""
    look = config.look
    if look is None:
        return []
    name, mark = f"{HELD_OUT}{config.choose_by}", marked(look)[_MARK]
    cards = {score.name: card_of(score) for score in look.scores if score.name == config.choose_by}
    rises = cards[config.choose_by].higher_is_better if cards else config.choose_by == "diversity"
    looks = [row for row in map(json.loads, lines) if row.get(_MARK) == mark]
    return sorted(looks, key=lambda row: (-row[name] if rises else row[name], row["step"]))


@contextmanager
def chosen(context: StageContext, trained: Trained, course: Course) -> Iterator[tuple[int, Path]]:
    """Give the update whose weights become the artifact, and its checkpoint, once a training has
    ended with `trained`.

    Raises StageFailed if no checkpoint with a look is kept.
    """
    config = context.config.distill
    if config.choose == "last":
        yield trained.details["update"], trained.folder
        return
    ranked = ranked_looks((trained.folder / TRACE).read_text().splitlines(), config)
    saved = saved_in(context.store, context.training_folder)
    there = {one.step: one for one in course.starts(saved, context.key)}
    best = next((row for row in ranked if row["step"] in there), None)
    if best is None:
        raise StageFailed(
            "distill: no checkpoint with a look is kept to choose from; distill.choose=last takes "
            "the last, `ladd-pipeline run --force distill` trains anew with looks"
        )
    if best is not ranked[0]:
        context.warn(
            f"update {ranked[0]['step']:,} had a better look than the chosen {best['step']:,}, but "
            "its checkpoint is not kept"
        )
    keep_best(context, course, best["step"])
    with folder_of(context, there[best["step"]], course.takes) as folder:
        yield best["step"], folder
