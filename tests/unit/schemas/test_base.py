"""Which fields make an artifact what it is, and which only say how it is made."""

from __future__ import annotations

from pipeline.commands.opening import open_config
from schemas.base import Frozen, added, added_as, identity_of, outside_fields
from schemas.config import DistillConfig


def test_runtime_fields_are_not_in_the_identity():
    config = open_config(preset="shapes", environment={})
    identity = identity_of(config.distill)
    assert "learning_rate" in identity and "workers" not in identity and "log_every" not in identity
    assert "pool" not in identity_of(config.synthesize)


def test_an_added_field_enters_the_identity_only_when_it_is_set():
    """Bug: declare it as a plain field; then every artifact made before it loses its key."""

    class Section(Frozen):
        steps: int = 3
        column: str = added("prompt")

    assert identity_of(Section()) == {"steps": 3}
    assert identity_of(Section(column="text")) == {"steps": 3, "column": "text"}


def test_a_field_with_a_new_default_is_left_out_where_it_says_what_was_done_before():
    """Bug: leave it out at its default; then what is made anew takes the place of what was made."""

    class Section(Frozen):
        shift: float | None = added_as(1.0, None)

    assert identity_of(Section()) == {"shift": None}
    assert identity_of(Section(shift=1)) == {}
    assert identity_of(Section(shift=3)) == {"shift": 3.0}


def test_values_that_are_alike_have_the_identity_of_the_default():
    def identity(choice: str) -> dict:
        return identity_of(DistillConfig(on_collapse=choice))

    assert identity("stop") == identity("warn") == identity_of(DistillConfig())
    assert identity("lower_rate") == identity("warn") | {"on_collapse": "lower_rate"}


def test_a_look_is_in_the_identity_only_where_it_chooses_the_result():
    """Bug: leave it out there too; then two students have one key. Its models enter it as well."""
    score = {"name": "clip_score", "model": "./clip"}
    look = {"every": 500, "scores": [score], "micro_batch": 4}
    seen, chosen = (
        DistillConfig.model_validate({"look": look, "choose": choose})
        for choose in ("last", "best")
    )
    assert identity_of(seen) == identity_of(DistillConfig())
    assert list(outside_fields(seen)) == []
    added = {name: identity_of(chosen)[name] for name in ("choose", "choose_by", "look")}
    assert identity_of(chosen) == identity_of(seen) | added
    assert added["choose_by"] == "distance" and added["look"]["every"] == 500
    assert "micro_batch" not in added["look"]
    assert list(outside_fields(chosen)) == [("look.scores.0.model", "model", "./clip")]
