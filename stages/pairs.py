"""Stage `pairs`: makes preference pairs: two pictures of one prompt, and which of them is better.

Samples pairs from the teacher or the student and ranks them by a reward, or reads them from a file.
The sidecars record near-ties and unusable pairs, which are counted and never dropped silently.
"""

from __future__ import annotations

import io
import json
from collections import Counter, defaultdict
from collections.abc import Iterator
from functools import cached_property, partial
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

from pipeline.base.failures import failed_kinds, recorded
from pipeline.base.mapping import map_shards, worker_devices
from pipeline.base.parquet import table_bytes
from pipeline.base.shards import ShardWriter, TarSample, write_tar
from pipeline.base.stage import StageContext, StageResult
from pipeline.base.store import Artifact, ArtifactStore
from pipeline.base.work import Above, Phase, Work, pieces_of
from schemas.addresses import public
from schemas.bucket import Bucket, nearest_bucket
from schemas.config import PipelineConfig
from schemas.errors import StageFailed, UnusableSample
from schemas.records import ShardStats
from stages.data.pair_files import Part, SourcePair, parts_of, read_part, require_pair_files
from stages.estimates.pictures import drawn, largest, pair_bytes, writing_seconds
from stages.estimates.scores import judged, weight_bytes
from stages.pictures.files import encode_image, fit_to_bucket
from stages.pictures.student import check_steps, pairs_sampler, pairs_student
from stages.scores import check_model, check_score, open_score, score_models
from stages.teachers import check_teacher, model_costs, open_teacher_in, teacher_models
from stages.teachers.hub_models import HubModel
from stages.texts.captions import checked_prompt
from stages.texts.choice import chosen_prompts
from stages.texts.identity import HELD_OUT, hash_fraction, prompt_id, seed_of, split_of
from stages.texts.judgeable import check_judged

if TYPE_CHECKING:
    import numpy as np
    import torch
    from PIL import Image

    from stages.pictures.samplers import Sampler
    from stages.scores.protocol import Score

SIDECAR_COLUMNS = {
    **dict.fromkeys(("key", "prompt_id", "prompt", "status", "reason"), "string"),
    **{"width": "int32", "height": "int32", "bucket": "string"},
    **dict.fromkeys(("winner_seed", "loser_seed"), "int64"),
    **dict.fromkeys(("winner_score", "loser_score"), "float64"),
    **{"judge": "string", "split": "string"},
}

Row = dict[str, Any]
Made = tuple[Row, dict[str, bytes]]
"""A sidecar row, and the pair's tar members: empty unless the status is ok."""


def check(config: PipelineConfig) -> None:
    """Raise ConfigError for a missing file of pairs, an unknown reward, prompts that the reward
    cannot judge, a number of steps that the student does not take, or a model's folder that is not
    whole.
    """
    check_teacher(config.teacher)
    pairs = config.pairs
    check_steps("pairs.student_steps", pairs.student_steps, config.distill.student_time.grid)
    if pairs.url is not None:
        require_pair_files(pairs.url)
    else:
        check_score("pairs.reward", pairs.reward.name)
        check_judged(config, "pairs.reward", [pairs.reward.name], "train")
        check_model(pairs.reward)


def models(config: PipelineConfig) -> list[HubModel]:
    judges = [config.pairs.reward] if config.pairs.url is None else []
    return teacher_models(config.teacher) + score_models(judges)


def estimate(config: PipelineConfig) -> str:
    pairs = config.pairs
    if pairs.url is not None:
        return f"pairs from {public(pairs.url)}"
    return (
        f"{pairs.prompts:,} prompts, {pairs.pictures_per_prompt} pictures each by the "
        f"{pairs.model}, ranked by {pairs.reward.name}"
    )


def work(config: PipelineConfig, above: Above) -> Work | None:
    """Workers of a pool sample several pictures of each prompt and rank them. None for pairs from
    files, whose number is known when they are read.
    """
    wanted, costs = config.pairs, model_costs(config.teacher)
    if costs is None or wanted.url is not None:
        return None
    prompts = min(wanted.prompts, above.get("prompts", {}).get("train", wanted.prompts))
    pictures = prompts * wanted.pictures_per_prompt
    how = config.synthesize.at(steps=wanted.teacher_steps, guidance_scale=wanted.guidance_scale)
    passes = how.passes if wanted.model == "teacher" else wanted.student_steps
    kept = pair_bytes(config, costs)
    drawing = Phase(
        "pairs",
        (
            *drawn(config, costs, pictures, passes, wanted.micro_batch),
            *judged(config, [wanted.reward.name], pictures),
        ),
        core_seconds=writing_seconds(config, 2 * prompts, "png"),
        by=wanted.pool,
        pieces=pieces_of(prompts, wanted.prompts_per_shard),
    )
    is_student = wanted.model == "student"
    in_float32 = is_student and config.distill.precision == "float32"
    return Work(
        samples=pictures,
        unit="pictures",
        phases=(drawing,),
        counts={"ok": prompts},
        store_bytes=prompts * kept,
        scratch_bytes=2 * min(prompts, wanted.prompts_per_shard) * kept
        + (costs.folder_bytes() if is_student else 0),
        device_bytes=costs.sampling_bytes(
            largest(config), wanted.micro_batch, in_float32=in_float32
        )
        + weight_bytes([wanted.reward.name]),
        model_bytes=costs.folder_bytes(),
    )


def run(context: StageContext) -> StageResult:
    config = context.config.pairs
    if config.url is None:
        rows = chosen_prompts(context.inputs["prompts"], config.prompts, "pairs")
        plan: dict[str, Any] = _plan(rows, config.prompts_per_shard)
        work: Any = PairSampler
    else:
        parts = parts_of(config.url, config.prompts_per_shard)
        plan = {_shard(i): part for i, part in enumerate(parts)}
        work = PairReader
    student = context.inputs.get("distill")
    build = partial(work, context.config, context.store, context.folder, plan, student)
    done = map_shards(context, sorted(plan), build, config.pool)
    counts: Counter[str] = Counter()
    buckets: dict[str, Counter[str]] = defaultdict(Counter)
    for _, stats in sorted(done.items()):
        counts.update(stats.counts)
        for name, splits in stats.details["buckets"].items():
            buckets[name].update(splits)
    if not counts["ok"]:
        raise StageFailed(
            f"pairs: no pair was usable ({dict(counts)}); look at the sidecars in "
            f"{context.folder}/shards, lower pairs.margin or raise pairs.prompts"
        )
    return StageResult.of_shards(
        done.values(),
        worker_devices(config.pool),
        counts=dict(counts),
        details={
            "shards": sorted(plan),
            "buckets": {name: dict(splits) for name, splits in sorted(buckets.items())},
            "judge": config.reward.name if config.url is None else public(config.url),
        },
    )


def _shard(number: int) -> str:
    return f"shards/pairs/{number:06d}"


def _plan(rows: list[Row], size: int) -> dict[str, list[Row]]:
    """Plan shards of `size` prompts; most hold one bucket, so that micro-batches are full."""
    ordered = sorted(rows, key=lambda row: (row["width"], row["height"], row["prompt_id"]))
    starts = range(0, len(ordered), size)
    return {_shard(i): ordered[start : start + size] for i, start in enumerate(starts)}


class Verdict(NamedTuple):
    """The result of ranking the pictures of one prompt."""

    status: str
    """ok, near_tie or failed; for pairs from a file also filtered."""
    reason: str | None
    best: int | None = None
    worst: int | None = None


def best_and_worst(scores: np.ndarray, margin: float, *, higher_is_better: bool) -> Verdict:
    """Find the best and the worst picture by their scores (n,), NaN for an unusable picture. Among
    equal scores the first picture counts.
    """
    import numpy as np

    usable = np.flatnonzero(np.isfinite(scores))
    if len(usable) < 2:
        return Verdict("failed", "fewer than two pictures are finite and have a score")
    merit = scores[usable] * (1 if higher_is_better else -1)
    best, worst = int(usable[merit.argmax()]), int(usable[merit.argmin()])
    difference = float(merit.max() - merit.min())
    if difference <= margin:
        reason = f"scores differ by {difference:.4g}, not by more than {margin:g}"
        return Verdict("near_tie", reason, best, worst)
    return Verdict("ok", None, best, worst)


class _PairWorker:
    """Makes whole shards, in a worker that has the models loaded."""

    def __init__(
        self,
        config: PipelineConfig,
        store: ArtifactStore,
        folder: str,
        plan: dict[str, Any],
        student: Artifact | None,
    ) -> None:
        self.config, self.pairs, self.student = config, config.pairs, student
        self.store, self.folder, self.plan = store, folder, plan
        self.teacher = open_teacher_in(self.pairs.pool, config.teacher)

    def __call__(self, shard: str) -> ShardStats:
        writer = ShardWriter(self.store, self.folder, shard)  # whose clock runs from here on
        members: list[TarSample] = []
        rows: list[Row] = []
        counts = Counter(ok=0, near_tie=0, failed=0)
        buckets: dict[str, Counter[str]] = defaultdict(Counter)
        for row, contents in self.make(self.plan[shard]):
            rows.append(row)
            counts[row["status"]] += 1
            if row["status"] == "ok":
                buckets[row["bucket"]][row["split"]] += 1
                members.append((row["key"], contents))
        write_tar(writer.file(".tar"), members)
        writer.file(".parquet", table_bytes(rows, SIDECAR_COLUMNS))
        details = {"buckets": {name: dict(splits) for name, splits in buckets.items()}}
        return writer.commit(dict(counts), details | {"failures": failed_kinds(rows)})

    def make(self, plan: Any) -> Iterator[Made]:
        """Yield the pairs of one shard."""
        raise NotImplementedError

    def row(self, key: str, prompt: str | None, judge: str, **fields: Any) -> Row:
        """Build a sidecar row; fields that are not given stay empty."""
        row: Row = dict.fromkeys(SIDECAR_COLUMNS)
        if prompt is not None:
            held_out = hash_fraction(prompt, "pairs split") < self.pairs.held_out_fraction
            split = "held_out" if held_out else "train"
            row |= {"prompt": prompt, "prompt_id": prompt_id(prompt), "split": split}
        return row | {"key": key, "judge": judge} | fields


class _Picture(NamedTuple):
    """One sampled picture of a prompt."""

    pixels_HW3: np.ndarray
    latents_CHW: torch.Tensor
    score: float


class PairSampler(_PairWorker):
    """Samples several pictures of each prompt and pairs the best with the worst."""

    def make(self, plan: list[Row]) -> Iterator[Made]:
        pictures = self._draw(plan)
        for planned in plan:
            yield self._pair(planned, list(islice(pictures, self.pairs.pictures_per_prompt)))

    def _draw(self, plan: list[Row]) -> Iterator[_Picture]:
        """Sample pictures prompt by prompt, in micro-batches that can span prompts."""
        import numpy as np

        from stages.pictures.samplers import sample_batches

        samples = [
            {**row, "seed": self._seed(row["prompt"], i)}
            for row in plan
            for i in range(self.pairs.pictures_per_prompt)
        ]
        for batch in sample_batches(samples, self.pairs.micro_batch):
            latents = self._sample(batch)
            pictures = self.teacher.decode_latents(latents)
            scores = self._reward.judge(pictures, [sample["prompt"] for sample in batch])
            stored = latents.half().cpu()  # which may not hold what is finite in float32
            finite = stored.isfinite().flatten(1).all(1).numpy()
            usable = np.where(finite, scores, np.nan).tolist()
            yield from map(_Picture, pictures, stored, usable)

    def _pair(self, planned: Row, pictures: list[_Picture]) -> Made:
        import numpy as np

        prompt, bucket = planned["prompt"], Bucket(planned["width"], planned["height"])
        verdict = best_and_worst(
            np.array([picture.score for picture in pictures]),
            self.pairs.margin,
            higher_is_better=self._reward.card.higher_is_better,
        )
        row = self.row(
            planned["prompt_id"],
            prompt,
            self.pairs.reward.name,
            status=verdict.status,
            reason=verdict.reason,
            width=bucket.width,
            height=bucket.height,
            bucket=str(bucket),
        )
        members: dict[str, bytes] = {}
        for side, index in (("winner", verdict.best), ("loser", verdict.worst)):
            if index is not None:
                picture = pictures[index]
                row[f"{side}_seed"] = self._seed(prompt, index)
                row[f"{side}_score"] = picture.score
                members |= _members(side, picture.pixels_HW3, picture.latents_CHW)
        return row, _with_text(row, members) if verdict.status == "ok" else {}

    def _seed(self, prompt: str, index: int) -> int:
        return seed_of(self.pairs.seed, prompt, index, purpose="pairs")

    @cached_property
    def _reward(self) -> Score:
        return open_score(self.pairs.reward, self.teacher.device)

    @cached_property
    def _sample(self) -> Sampler:
        from stages.pictures.samplers import teacher_sampler

        teacher, device = self.teacher, self.teacher.device
        if self.student is None:
            pairs = self.pairs
            how = self.config.synthesize.at(
                steps=pairs.teacher_steps, guidance_scale=pairs.guidance_scale
            )
            return teacher_sampler(teacher, teacher.backbone(), device, how)
        backbone, grid = pairs_student(self.student, self.config, device)
        return pairs_sampler(teacher, backbone, grid, self.config, device)


class PairReader(_PairWorker):
    """Reads pairs of pictures from a file, fits them to a bucket and encodes them."""

    def make(self, plan: Part) -> Iterator[Made]:
        import numpy as np

        results: list[Made] = []
        ready: dict[Bucket, list[tuple[int, list[Image.Image]]]] = defaultdict(list)
        for source in read_part(plan):
            row = self.row(
                source.key,
                source.prompt,
                source.judge,
                winner_score=source.winner_score,
                loser_score=source.loser_score,
            )
            results.append((row, {}))
            try:
                bucket, pictures = self._open(source)
            except UnusableSample as error:
                row |= {"status": "failed", "reason": recorded(error)}
                continue
            row |= {"width": bucket.width, "height": bucket.height, "bucket": str(bucket)}
            if self._is_dropped(source.prompt):
                row |= {"status": "filtered", "reason": HELD_OUT}
            elif source.tie:
                row |= {"status": "near_tie", "reason": "its source says that neither is better"}
            else:
                row["status"] = "ok"
                ready[bucket].append((len(results) - 1, pictures))
        for bucket, pairs in sorted(ready.items()):
            fitted = [
                np.asarray(fit_to_bucket(p, bucket)) for _, pictures in pairs for p in pictures
            ]
            latents = self._encode(fitted)
            for i, (index, _) in enumerate(pairs):
                row, members = results[index]
                if not latents[2 * i : 2 * i + 2].isfinite().all():
                    row |= {"status": "failed", "reason": "the latents of a picture are not finite"}
                    continue
                for side, position in (("winner", 2 * i), ("loser", 2 * i + 1)):
                    members |= _members(side, fitted[position], latents[position])
                results[index] = (row, _with_text(row, members))
        yield from results

    def _is_dropped(self, prompt: str | None) -> bool:
        fraction = self.config.prompts.held_out_fraction
        return (
            self.pairs.drop_held_out
            and prompt is not None
            and split_of(prompt, fraction) == "held_out"
        )

    def _open(self, source: SourcePair) -> tuple[Bucket, list[Image.Image]]:
        """Return the pair's bucket and its pictures, winner first. Raises UnusableSample saying
        what is wrong with the pair.
        """
        from stages.pictures.decoding import read_picture

        if source.problem is not None:
            raise UnusableSample(source.problem)
        checked_prompt(source.prompt, "its prompt")
        pictures, buckets = [], []
        for side, content in (("winner", source.winner), ("loser", source.loser)):
            picture = read_picture(content, side)
            pictures.append(picture)
            buckets.append(nearest_bucket(*picture.size, self.config.prompts.bucket_list()))
        if buckets[0] != buckets[1]:  # the crop might have decided the preference
            raise UnusableSample(f"its pictures are of two buckets: {buckets[0]}, {buckets[1]}")
        return buckets[0], pictures

    def _encode(self, pictures: list[np.ndarray]) -> torch.Tensor:
        import numpy as np
        import torch

        size = self.pairs.micro_batch
        return torch.cat(
            [
                self.teacher.encode_pictures(np.stack(pictures[start : start + size])).half().cpu()
                for start in range(0, len(pictures), size)
            ]
        )


def _members(side: str, picture_HW3: np.ndarray, latents_CHW: torch.Tensor) -> dict[str, bytes]:
    import numpy as np

    buffer = io.BytesIO()
    np.save(buffer, latents_CHW.numpy(), allow_pickle=False)
    return {
        f"{side}.png": encode_image(picture_HW3, "png", 100),
        f"{side}.latent.npy": buffer.getvalue(),
    }


def _with_text(row: Row, members: dict[str, bytes]) -> dict[str, bytes]:
    return members | {
        "txt": row["prompt"].encode(),
        "json": json.dumps(row, sort_keys=True).encode(),
    }
