"""Which fields make an artifact what it is, and which only say how it is made."""

from __future__ import annotations

from pipeline.commands.opening import open_config
from schemas.base import Frozen, added, added_as, identity_of
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
