"""Which training prompts are chosen."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq

from stages.texts.choice import chosen_prompts
from stages.texts.identity import hash_fraction


def test_prompts_are_the_first_of_training_by_hash(drawn):
    _, planned, _ = drawn
    every = chosen_prompts(planned, 1000, "pairs")
    folder = Path(planned.store.path(planned.folder))
    held_out = set(pq.read_table(folder / "held_out.parquet")["prompt"].to_pylist())
    texts = [row["prompt"] for row in every]
    assert held_out and not held_out & set(texts)
    assert len(set(texts)) == len(texts) == planned.manifest.counts["train"]
    assert texts == sorted(texts, key=lambda text: hash_fraction(text, "pairs"))
    assert chosen_prompts(planned, 5, "pairs") == every[:5]
    last = frozenset(row["prompt_id"] for row in every[:4])
    assert chosen_prompts(planned, 1000, "pairs", last) == every[4:] + every[:4]
