"""Stage `synthesize`: what its shards hold, and what is recorded of broken pictures."""

from __future__ import annotations

import io
import json
import threading

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
    assert list(maker._made([sample])) == [("failed", "not finite", {})]


@pytest.mark.parametrize(("stored", "status"), [("none", "ok"), ("beside", "failed")])
def test_latents_that_half_precision_cannot_hold_are_not_stored(tiny_config, stored, status):
    section = tiny_config.synthesize.model_copy(update={"latents": stored, "flat_below": 0.0})
    config = tiny_config.model_copy(update={"synthesize": section})
    maker = synthesize.Synthesizer(config, None, "x")
    maker.draw = lambda samples: torch.full((len(samples), 4, 8, 8), 1e6)
    sample = {"key": "k", "prompt": "a", "seed": 1, "width": 32, "height": 32}
    assert next(maker._made([sample]))[0] == status


def test_pictures_are_encoded_while_the_next_batch_is_drawn(tiny_config):
    """Each waits for the other's beginning, so neither could end alone; the order stays."""
    section = tiny_config.synthesize.model_copy(update={"micro_batch": 1})
    maker = synthesize.Synthesizer(
        tiny_config.model_copy(update={"synthesize": section}), None, "x"
    )
    draws, encodes = threading.Event(), threading.Event()
    drawn, draw, members = [], maker.draw, maker._members

    def draw_second_beside_first(samples):
        drawn.append(samples[0]["key"])
        if len(drawn) == 2:
            draws.set()
            assert encodes.wait(20)
        return draw(samples)

    def encode_first_beside_second(sample, *rest):
        encodes.set()
        assert draws.wait(20)
        return members(sample, *rest)

    maker.draw, maker._members = draw_second_beside_first, encode_first_beside_second
    samples = [
        {"key": key, "prompt": key, "seed": seed, "width": 32, "height": 32}
        for seed, key in enumerate("abc")
    ]
    made = list(maker._made(samples))
    assert drawn == ["a", "b", "c"]
    assert [members["txt"] for _, _, members in made] == [b"a", b"b", b"c"]


def test_latents_alone_need_no_decoding(tiny_config, monkeypatch):
    section = tiny_config.synthesize.model_copy(update={"latents": "only", "flat_below": 0.0})
    maker = synthesize.Synthesizer(
        tiny_config.model_copy(update={"synthesize": section}), None, "x"
    )
    monkeypatch.setattr(maker.teacher, "decode_latents", None)
    sample = {"key": "k", "prompt": "a", "seed": 1, "width": 32, "height": 32}
    ((status, _, members),) = maker._made([sample])
    assert status == "ok" and set(members) == {"txt", "json", "latent.npy"}


def test_the_teacher_is_compiled_only_where_that_is_asked(tiny_config, monkeypatch):
    from stages.ladd import parallelize

    compiled = []
    monkeypatch.setattr(parallelize, "compile_blocks", compiled.append)
    synthesize.Synthesizer(tiny_config, None, "x")
    assert not compiled
    section = tiny_config.synthesize.model_copy(update={"compile_blocks": True})
    config = tiny_config.model_copy(update={"synthesize": section})
    synthesize.Synthesizer(config, None, "x")
    (backbone,) = compiled
    assert len(backbone.blocks) == 3
