"""A look at held-out prompts while a student trains: scores, distance to the teacher, diversity.

Teacher and student draw each prompt from the same two seeds. The pictures of one seed are compared
with the other's of the teacher, and the teacher's own two sets with each other: that distance is
the floor, which a student that draws as the teacher does reaches exactly.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass

import numpy as np
import pyarrow.parquet as pq
import torch

from pipeline.base.markers import finished_shards
from pipeline.base.shards import ShardWriter
from pipeline.base.stage import StageContext, digest_of
from pipeline.base.store import Artifact
from schemas.base import identity_of
from schemas.config import LookConfig
from schemas.errors import ConfigError
from stages.ladd.backbone import Backbone
from stages.ladd.ema import ExponentialAverage
from stages.ladd.grid import student_sigmas
from stages.ladd.parallel import rank_and_world, sum_over_ranks
from stages.pictures.samplers import (
    PlannedSample,
    Sampler,
    remembering,
    sample_batches,
    student_sampler,
    teacher_sampler,
)
from stages.scores import open_features, open_score
from stages.scores.diversity import intra_prompt_diversity
from stages.scores.kernel import cmmd, paired_kid
from stages.teachers.protocol import Teacher
from stages.texts.identity import seed_of
from stages.texts.judgeable import require_judged

SEEDS = 2
HELD_OUT, TEACHER = "held_out_", "teacher_"
"""Figures of the student, and of the teacher on the same prompts."""


@dataclass(frozen=True)
class Seen:
    """The pictures of P prompts, `SEEDS` of each, as numbers."""

    scores_KPS: np.ndarray
    """The values of K scores."""
    features_PSF: np.ndarray

    @classmethod
    def of_rows(cls, rows_NM: np.ndarray, scores: int) -> Seen:
        """From one row for each picture, those of a prompt in a row: scores, then features."""
        rows_PSM = rows_NM.reshape(-1, SEEDS, rows_NM.shape[1])
        return cls(np.moveaxis(rows_PSM[:, :, :scores], 2, 0), rows_PSM[:, :, scores:])


def figures(student: Seen, teacher: Seen, config: LookConfig) -> dict[str, float]:
    """The figures of a look, by name. `held_out_diversity` is the student's as a share of the
    teacher's, `teacher_distance` the floor.
    """
    statistic = cmmd if config.features.name == "clip_features" else paired_kid

    def distance(seen: Seen) -> float:
        mine, theirs = seen.features_PSF, teacher.features_PSF
        return float(np.mean([statistic(mine[:, s], theirs[:, 1 - s]) for s in range(SEEDS)]))

    diversity = intra_prompt_diversity(student.features_PSF)
    found = {}
    for number, score in enumerate(config.scores):
        found[f"{HELD_OUT}{score.name}"] = float(student.scores_KPS[number].mean())
        found[f"{TEACHER}{score.name}"] = float(teacher.scores_KPS[number].mean())
    return found | {
        f"{HELD_OUT}distance": distance(student),
        f"{TEACHER}distance": distance(teacher),
        f"{HELD_OUT}diversity": diversity / intra_prompt_diversity(teacher.features_PSF),
    }


def look_samples(planned: Artifact, count: int, seed: int) -> list[PlannedSample]:
    """Choose at most `count` held-out prompts of the `prompts` artifact, the last by their ids, and
    return `SEEDS` samples of each in a row, those of one bucket together.

    Raises ConfigError when there are fewer than two prompts: a distance needs them.
    """
    with planned.checked(planned.entry("held_out.parquet")) as path:
        rows = pq.read_table(path).to_pylist()
    chosen = heapq.nlargest(count, rows, key=lambda row: row["prompt_id"])
    if len(chosen) < 2:
        raise ConfigError(
            f"distill.look: {len(chosen)} held-out prompts are too few; raise prompts.count or "
            "prompts.held_out_fraction"
        )
    chosen.sort(key=lambda row: (row["width"], row["height"], row["prompt_id"]))
    return [
        {**row, "seed": seed_of(seed, row["prompt"], number, purpose="look")}
        for row in chosen
        for number in range(SEEDS)
    ]


class HeldOutLook:
    """Looks at the student's averaged weights. The batches are dealt to the ranks, and the figures
    do not depend on how many there are.

    The teacher is drawn at the first look; what was seen of it is kept with the training's
    checkpoints. Prompts are encoded once and kept in host memory; scores and features are loaded
    for each look anew.
    """

    def __init__(
        self,
        context: StageContext,
        config: LookConfig,
        teacher: Teacher,
        frozen: Backbone,
        student: Backbone,
        average: ExponentialAverage,
    ) -> None:
        self.config, self._context = config, context
        self._teacher, self._frozen = teacher, frozen
        self._student, self._average = student, average
        self._encode = remembering(teacher.encode_prompts)
        seed = context.config.prompts.seed
        self._samples = look_samples(context.inputs["prompts"], config.prompts, seed)
        prompts = [sample["prompt"] for sample in self._samples]
        require_judged("distill.look.scores", [score.name for score in config.scores], prompts)
        count = len(prompts) // SEEDS
        if count < config.prompts and rank_and_world()[0] == 0:
            context.warn(f"distill.look.prompts is {config.prompts}, but {count} are held out")
        self._batches = list(sample_batches(self._samples, config.micro_batch))
        self._of_teacher: Seen | None = None

    def take(self) -> dict[str, float]:
        """Return the figures. Every rank calls this, and gets the same ones."""
        if self._of_teacher is None:
            self._of_teacher = self._seen_of_teacher()
        grid = self._teacher.student_grid(self._context.config.distill.student_time)
        draw = student_sampler(
            self._teacher,
            self._student,
            self._teacher.device,
            student_sigmas(grid, self.config.steps or len(grid)),
            bfloat16=self._context.config.distill.precision == "bfloat16",
            encode=self._encode,
        )
        with self._average.shown_by(self._student):
            pictures = self._draw(draw, "pictures of the look")
        student = Seen.of_rows(self._measure(pictures), len(self.config.scores))
        return figures(student, self._of_teacher, self.config)

    def _seen_of_teacher(self) -> Seen:
        """Read what an earlier start has seen of the teacher, or draw it. What rank 0 finds holds
        for all: a store may show a file to one and not yet to another.
        """
        context, folder = self._context, self._context.training_folder
        rank, _ = rank_and_world()
        rows = self._read(folder) if rank == 0 else np.zeros((0, 0))
        width = int(self._over_ranks(np.array([rows.shape[1]]))[0])
        if width:
            rows = self._over_ranks(rows if len(rows) else np.zeros((len(self._samples), width)))
        else:
            how, device = context.config.synthesize, self._teacher.device
            draw = teacher_sampler(self._teacher, self._frozen, device, how, self._encode)
            rows = self._measure(self._draw(draw, "pictures of the teacher to compare with"))
            if rank == 0:
                writer = ShardWriter(context.store, folder, self._shard)
                with writer.file(".npy").open("wb") as file:
                    np.save(file, rows, allow_pickle=False)
                writer.commit({"ok": len(rows)})
        return Seen.of_rows(rows, len(self.config.scores))

    def _read(self, folder: str) -> np.ndarray:
        """(N, M) as `_measure` returned it; nothing if it is not there."""
        store = self._context.store
        if self._shard not in finished_shards(store, folder):
            return np.zeros((0, 0))
        with store.local(f"{folder}/{self._shard}.npy") as path:
            rows: np.ndarray = np.load(path, allow_pickle=False)
            return rows

    @property
    def _shard(self) -> str:
        """The teacher's numbers, under a name of what they depend on beside the training's key."""
        look = self.config.model_copy(update={"every": 1, "steps": None})
        depends = [identity_of(look), identity_of(self._context.config.synthesize)]
        return f"shards/look-{digest_of(depends)[:16]}"

    def _draw(self, draw: Sampler, what: str) -> dict[int, np.ndarray]:
        """Draw this rank's batches: pictures (B, H, W, 3) uint8, by the number of the batch. Where
        weights are sharded every rank must make each pass, so the last round is one for all.
        """
        rank, world = rank_and_world()
        total, drawn = len(self._batches), {}
        for first in range(0, total, world):
            number = min(first + rank, total - 1)
            drawn[number] = self._teacher.decode_latents(draw(self._batches[number]))
            if rank == 0:
                done = sum(map(len, self._batches[: first + world]))
                self._context.report(what, done, len(self._samples))
        if self._context.config.encode.embeddings == "stored":
            self._teacher.release()  # scores need its memory, and training no text encoders
        return {number: pictures for number, pictures in drawn.items() if number % world == rank}

    def _measure(self, drawn: dict[int, np.ndarray]) -> np.ndarray:
        """(N, M): a row for each of all samples, its scores and its features, from all ranks."""
        device = self._teacher.device
        scores = [open_score(score, device) for score in self.config.scores]
        space = open_features(self.config.features, device)
        rows_NM = np.zeros((len(self._samples), len(scores) + space.width))
        starts = np.cumsum([0, *map(len, self._batches)])
        for number, pictures in drawn.items():
            prompts = [sample["prompt"] for sample in self._batches[number]]
            judged = [score.judge(pictures, prompts) for score in scores]
            rows_NM[starts[number] : starts[number + 1]] = np.column_stack(
                [*judged, space.features(pictures)]
            )
        return self._over_ranks(rows_NM)

    def _over_ranks(self, array: np.ndarray) -> np.ndarray:
        """The sum over ranks, in float64: exact, as each element is 0 on all ranks but one."""
        tensor = torch.from_numpy(array.astype(np.float64)).to(self._teacher.device)
        sum_over_ranks([tensor])
        return tensor.cpu().numpy()
