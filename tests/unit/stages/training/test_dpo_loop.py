"""Which held-out pairs each worker looks at."""

from __future__ import annotations

import pytest

from schemas.config import DpoConfig
from stages.training import dpo_loop


@pytest.mark.parametrize("world", [1, 2, 3])
def test_looks_visit_every_chosen_pair_with_every_noise_once(world, monkeypatch):
    class Data:
        def __init__(self):
            self.sizes = {"held_out": {"32x32": 7, "48x16": 4}}

        def batch(self, split, bucket, rows):
            assert split == "held_out"
            return bucket, tuple(rows), None

    monkeypatch.setattr(dpo_loop, "HELD_OUT_PAIRS", 6)
    config = DpoConfig(global_batch=6, workers=world)
    found = [
        (slots, *batch)
        for rank in range(world)
        for slots, batch in dpo_loop.held_out_batches(Data(), config, rank, world)
    ]
    slots = sorted(slot for part, *_ in found for slot in part)
    assert slots == list(range((4 + 2) * dpo_loop.HELD_OUT_DRAWS))
    seen = sorted((bucket, row) for _, bucket, rows, _ in found for row in rows)
    chosen = [("32x32", row) for row in (0, 2, 4, 6)] + [("48x16", row) for row in (0, 2)]
    assert seen == sorted(chosen * dpo_loop.HELD_OUT_DRAWS)
