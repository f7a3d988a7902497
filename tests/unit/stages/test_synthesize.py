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


def maker_of(tiny_config, **fields):
    """A worker whose section `synthesize` has these fields."""
    section = tiny_config.synthesize.model_copy(update=fields)
    config = tiny_config.model_copy(update={"synthesize": section})
    return synthesize.Synthesizer(config, None, "x")


def noting(events, name, call):
    """`call`, which notes its name first."""

    def noted(*arguments):
        events.append(name)
        return call(*arguments)

    return noted


def planned(*keys):
    return [
        {"key": key, "prompt": key, "seed": seed, "width": 32, "height": 32}
        for seed, key in enumerate(keys)
    ]


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
    maker = maker_of(tiny_config)
    maker.draw = lambda samples: torch.full((len(samples), 4, 8, 8), float("nan"))
    assert list(maker._made(planned("a"))) == [("failed", "not finite", {})]


@pytest.mark.parametrize(("stored", "status"), [("none", "ok"), ("beside", "failed")])
def test_latents_that_half_precision_cannot_hold_are_not_stored(tiny_config, stored, status):
    maker = maker_of(tiny_config, latents=stored, flat_below=0.0)
    maker.draw = lambda samples: torch.full((len(samples), 4, 8, 8), 1e6)
    assert next(maker._made(planned("a")))[0] == status


def test_pictures_are_encoded_while_the_next_batch_is_drawn(tiny_config):
    """Each waits for the other's beginning, so neither could end alone; the order stays."""
    maker = maker_of(tiny_config, micro_batch=1)
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
    made = list(maker._made(planned("a", "b", "c")))
    assert drawn == ["a", "b", "c"]
    assert [members["txt"] for _, _, members in made] == [b"a", b"b", b"c"]


def test_offloaded_text_encoders_take_turns_with_the_transformer(tiny_config, monkeypatch):
    """And the pictures are the same. Bug: encode a batch while the transformer is on the device."""
    maker = maker_of(tiny_config, micro_batch=2, offload_text_encoders=True)
    events = []
    for owner, name in (
        (maker.teacher, "encode_prompts"),
        (maker.teacher, "shelve_text_encoders"),
        (maker.ahead._backbone, "to"),
        (maker, "draw"),
    ):
        monkeypatch.setattr(owner, name, noting(events, name, getattr(owner, name)))
    plain, samples = maker_of(tiny_config, micro_batch=2), planned("a", "b", "c")
    assert list(maker._made(samples)) == list(plain._made(samples))
    encoding = ["to", "encode_prompts", "encode_prompts", "shelve_text_encoders", "to"]
    assert events == [*encoding, "draw", "draw"]


def test_latents_alone_need_no_decoding(tiny_config, monkeypatch):
    maker = maker_of(tiny_config, latents="only", flat_below=0.0)
    monkeypatch.setattr(maker.teacher, "decode_latents", None)
    ((status, _, members),) = maker._made(planned("a"))
    assert status == "ok" and set(members) == {"txt", "json", "latent.npy"}


def test_the_teacher_is_compiled_only_where_that_is_asked(tiny_config, monkeypatch):
    from stages.ladd import parallelize

    compiled = []
    monkeypatch.setattr(parallelize, "compile_blocks", compiled.append)
    maker_of(tiny_config)
    assert not compiled
    maker_of(tiny_config, compile_blocks=True)
    (backbone,) = compiled
    assert len(backbone.blocks) == 3
