"""Stage `synthesize`: what its shards hold, and what is recorded of broken pictures."""

from __future__ import annotations

import io
import json

import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from stages import synthesize
from stages.pictures.samplers import guidance_scale_of
from tests.support.samples import samples_of


def test_shards_hold_picture_text_and_record_and_sidecars_every_planned_sample(chain):
    _, artifacts = chain()
    samples = samples_of(artifacts["synthesize"])
    rows = []
    for entry in artifacts["synthesize"].files("shards/", ".parquet"):
        with artifacts["synthesize"].checked(entry) as path:
            rows += pq.read_table(path).to_pylist()
    assert {row["key"] for row in rows} == set(samples)
    for row in rows:
        members = samples[row["key"]]
        assert Image.open(io.BytesIO(members["png"])).size == (row["width"], row["height"])
        assert members["txt"].decode() == row["prompt"]
        assert json.loads(members["json"])["seed"] == row["seed"]
        assert row["status"] == "ok"


def test_the_record_of_a_picture_has_the_scale_that_its_seed_drew(chain):
    config, artifacts = chain(synthesize={"guidance_range": [2.0, 9.0]})
    records = [json.loads(m["json"]) for m in samples_of(artifacts["synthesize"]).values()]
    scales = [record["guidance_scale"] for record in records]
    assert scales == [guidance_scale_of(record, config.synthesize) for record in records]
    assert min(scales) < 4 and max(scales) > 7


def test_flat_pictures_are_recorded_as_filtered_and_broken_ones_as_failed(chain, tiny_config):
    with pytest.raises(Exception, match=r"no picture was usable.*filtered"):
        chain(synthesize={"flat_below": 200.0})
    maker = synthesize.Synthesizer(tiny_config, None, "x")
    maker.draw = lambda samples: torch.full((len(samples), 4, 8, 8), float("nan"))
    sample = {"key": "k", "prompt": "a", "seed": 1, "width": 32, "height": 32}
    assert maker._make([sample]) == [("failed", "not finite", {})]


@pytest.mark.parametrize(("stored", "status"), [("none", "ok"), ("beside", "failed")])
def test_latents_that_half_precision_cannot_hold_are_not_stored(tiny_config, stored, status):
    section = tiny_config.synthesize.model_copy(update={"latents": stored, "flat_below": 0.0})
    config = tiny_config.model_copy(update={"synthesize": section})
    maker = synthesize.Synthesizer(config, None, "x")
    maker.draw = lambda samples: torch.full((len(samples), 4, 8, 8), 1e6)
    sample = {"key": "k", "prompt": "a", "seed": 1, "width": 32, "height": 32}
    assert maker._make([sample])[0][0] == status
