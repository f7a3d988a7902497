"""Which prompts an evaluation uses, and the proof that none of them was trained on."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterator
from typing import Any

from pipeline.base.failures import Failures
from pipeline.base.stage import StageContext, digest_of
from pipeline.base.store import Artifact
from schemas.bucket import Bucket
from schemas.config import FileSource, PipelineConfig
from schemas.errors import ArtifactError, ConfigError
from stages.shapes_world.captions import CaptionError, parse
from stages.texts.identity import bucket_of, clean, prompt_id, seed_of
from stages.texts.judgeable import check_judged
from stages.texts.sources import EVAL, evaluated, read_rows, require_prompts


def check_prompts(config: PipelineConfig) -> None:
    """Raise ConfigError if the files in `eval.url` are missing or hold no prompts, if no prompts
    are held out, or if a score cannot judge them.
    """
    source = evaluated(config)
    if source is not None:
        require_prompts(source, EVAL)
    elif config.prompts.held_out_fraction == 0:
        raise ConfigError("prompts.held_out_fraction is 0: there is nothing to judge on")
    check_judged(config, "eval.scores", [score.name for score in config.eval.scores], "evaluated")


def chosen_samples(context: StageContext) -> list[dict[str, Any]]:
    """Return the samples that an evaluation judges on, as `judged_samples` has them."""
    return judged_samples(context.config, context.inputs.get("prompts"))


def judged_samples(config: PipelineConfig, planned: Artifact | None) -> list[dict[str, Any]]:
    """Choose at most `eval.prompts` samples with key, prompt_id, prompt, seed, width, height,
    bucket and category, in an order that depends only on the prompts. They are those of `eval.url`,
    or held out in the `prompts` artifact.

    Raises ConfigError when there are fewer than eight.
    """
    tags: dict[str, str] = {}
    source = evaluated(config)
    if source is None:
        assert planned is not None
        rows = _rows(planned, "held_out.parquet")
    else:
        by_id = {row["prompt_id"]: row for row in _from_files(config, source, tags)}
        rows = iter(by_id.values())
    chosen = heapq.nsmallest(config.eval.prompts, rows, key=lambda row: row["prompt_id"])
    categories = _categories([row["prompt"] for row in chosen], tags)
    samples = [
        {**row, "bucket": str(Bucket(row["width"], row["height"])), "category": category}
        for row, category in zip(chosen, categories, strict=True)
    ]
    if len(samples) < 8:
        raise ConfigError(
            f"eval: {len(samples)} prompts are too few to judge on; raise prompts.count or "
            "prompts.held_out_fraction, or name a file in eval.url"
        )
    return samples


def tell_of_failed_rows(context: StageContext) -> None:
    """Warn if many rows of the files in `eval.url` are no prompts, which are not judged on."""
    source = evaluated(context.config)
    if source is not None:
        failures = Failures(context, what="rows of eval.url", where="the files themselves")
        for row in read_rows(source, EVAL):
            failures.add(row.reason)
        failures.tell()


def prove_held_out(samples: list[dict[str, Any]], lineage: dict[str, Artifact]) -> dict[str, Any]:
    """Check that no sample's prompt was trained on. Returns the proof for the manifest: a digest of
    the samples' prompt ids, and the number of training prompts compared in each artifact. Raises
    ArtifactError naming a prompt that was trained on.
    """
    chosen = {sample["prompt_id"]: sample["prompt"] for sample in samples}
    compared: Counter[str] = Counter()
    for artifact, name in _trained_lists(lineage):
        for row in _rows(artifact, name):
            if row.get("status") == "filtered":
                continue
            compared[artifact.folder] += 1
            for identity in chosen.keys() & _ids_of(row):
                raise ArtifactError(
                    f"eval: the prompt {chosen[identity]!r} was trained on "
                    f"({artifact.url}/{name}); judge only on held-out prompts"
                )
    return {"prompt_ids": digest_of(list(chosen)), "compared_with": dict(compared)}


def _ids_of(row: dict[str, Any]) -> set[str]:
    """Return the id that a row has, and that of its prompt: what was made before invisible
    characters were cleaned away may have another one.
    """
    prompt = row["prompt"] or ""
    return {row["prompt_id"]} | ({prompt_id(clean(prompt))} if not prompt.isascii() else set())


def _trained_lists(lineage: dict[str, Artifact]) -> Iterator[tuple[Artifact, str]]:
    """Yield the tables with the `prompt_id`s that distillation and tuning have seen."""
    encoded = lineage["encode"]
    for name in encoded.details["prompts"]:
        yield encoded, name
    if "pairs" in lineage:
        for entry in lineage["pairs"].files("shards/", ".parquet"):
            yield lineage["pairs"], entry.path


def _rows(artifact: Artifact, name: str) -> Iterator[dict[str, Any]]:
    import pyarrow.parquet as pq

    with artifact.checked(artifact.entry(name)) as path:
        for batch in pq.ParquetFile(path).iter_batches():
            yield from batch.to_pylist()


def _from_files(
    config: PipelineConfig, source: FileSource, tags: dict[str, str]
) -> Iterator[dict[str, Any]]:
    """Yield a sample for each row that is a prompt, and note its tag."""
    for row in read_rows(source, EVAL):
        prompt = row.prompt
        if prompt is None:
            continue
        if row.tag is not None:
            tags[prompt] = row.tag
        bucket = Bucket.parse(bucket_of(prompt, config.prompts.buckets))
        identity = prompt_id(prompt)
        yield {
            "key": f"{identity}-000",
            "prompt_id": identity,
            "prompt": prompt,
            "seed": seed_of(config.prompts.seed, prompt, 0),
            "width": bucket.width,
            "height": bucket.height,
        }


def _categories(prompts: list[str], tags: dict[str, str]) -> list[str]:
    """Return what each prompt asks for: its tag, or the structure of its shapes-world caption. If
    no prompt has either, all are in one category.
    """
    categories = [tags.get(prompt) or _caption_category(prompt) for prompt in prompts]
    if not any(categories):
        return ["all"] * len(prompts)
    return [category or "other" for category in categories]


def _caption_category(prompt: str) -> str | None:
    try:
        spec = parse(prompt)
    except CaptionError:
        return None
    kind = "one object" if len(spec.objects) == 1 else "two objects"
    if spec.place is not None:
        return f"{kind}, place"
    return f"{kind}, relation" if spec.relation is not None else kind
