"""Keys of artifacts: what means the same has the same key, and what does not has another."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
import yaml
from hypothesis import assume, given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from pipeline.base.stage import digest_of
from pipeline.config import load_config
from pipeline.dag import STAGES
from schemas.base import is_runtime
from schemas.config import PipelineConfig
from tests.support.fuzzing import fuzzed

pytestmark = pytest.mark.slow

Path = tuple[str, ...]


@cache
def base() -> PipelineConfig:
    return load_config(preset="shapes-smoke", environment={})


def keys_of(config: PipelineConfig) -> dict[str, str]:
    """The keys of the whole graph."""
    keys: dict[str, str] = {}
    for name, stage in STAGES.items():
        inputs = stage.inputs(config)
        if inputs is not None:
            keys[name] = stage.key(config, [keys[above] for above in inputs])
    return keys


def leaves(value: Any, where: Path = (), runtime: bool = False) -> Iterator[tuple[Path, bool]]:
    """The path of every plain field, and whether it is, or lies in, a runtime field."""
    for name in type(value).model_fields:
        inner, is_inner_runtime = getattr(value, name), runtime or is_runtime(value, name)
        if isinstance(inner, BaseModel):
            yield from leaves(inner, (*where, name), is_inner_runtime)
        elif isinstance(inner, (bool, int, float)):
            yield (*where, name), is_inner_runtime


LEAVES = dict(leaves(base()))


def changes_of(paths: list[Path]) -> st.SearchStrategy[list[tuple[Path, float]]]:
    factors = st.sampled_from((-1, 1, 2, 0.5, 3))
    return st.lists(st.tuples(st.sampled_from(paths), factors), max_size=4)


CHANGES = changes_of(sorted(LEAVES))
RUNTIME_CHANGES = changes_of(sorted(path for path, is_runtime in LEAVES.items() if is_runtime))


def changed(changes: list[tuple[Path, float]]) -> PipelineConfig:
    """The configuration with other values; draws again if they are refused."""
    content = base().model_dump(mode="json")
    for (*sections, name), change in changes:
        inner = content
        for section in sections:
            inner = inner[section]
        before = inner[name]
        if isinstance(before, bool):
            inner[name] = not before
        else:
            inner[name] = type(before)(before * change + (1 if change == 1 else 0))
    try:
        return PipelineConfig.model_validate(content)
    except ValidationError:
        assume(False)
        raise


def shuffled(value: Any, order: random.Random) -> Any:
    """The same JSON with the names of each object in another order."""
    if isinstance(value, dict):
        names = list(value)
        order.shuffle(names)
        return {name: shuffled(value[name], order) for name in names}
    return [shuffled(item, order) for item in value] if isinstance(value, list) else value


@fuzzed
@given(CHANGES, CHANGES)
def test_keys_are_equal_where_identities_and_inputs_are(first, second):
    """Bug: leave a field out of the identity, or an input out of the key."""
    one, two = changed(first), changed(second)
    keys, others = keys_of(one), keys_of(two)
    for name, stage in STAGES.items():
        if name not in keys or name not in others:
            continue
        inputs, other_inputs = stage.inputs(one), stage.inputs(two)
        alike = (
            stage.identity(one) == stage.identity(two)
            and inputs == other_inputs
            and all(keys[above] == others[above] for above in inputs)
        )
        assert (keys[name] == others[name]) == alike, name


@fuzzed
@given(RUNTIME_CHANGES)
def test_a_runtime_field_changes_no_key(changes):
    assert keys_of(changed(changes)) == keys_of(base())


@fuzzed
@given(CHANGES)
def test_another_input_is_another_key(changes):
    """Bug: key a stage by its own section alone."""
    config = changed(changes)
    kept, now = keys_of(base()), keys_of(config)
    for name, stage in STAGES.items():
        for above in stage.inputs(config) or ():
            if name in kept and now[above] != kept[above]:
                assert now[name] != kept[name], (above, name)


@fuzzed
@given(CHANGES, st.randoms(use_true_random=False), st.booleans())
def test_the_way_in_which_a_configuration_is_written_changes_no_key(changes, order, as_yaml):
    config = changed(changes)
    content = shuffled(config.model_dump(mode="json"), order)
    text = yaml.safe_dump(content, sort_keys=False) if as_yaml else json.dumps(content)
    read = yaml.safe_load(text) if as_yaml else json.loads(text)
    assert keys_of(PipelineConfig.model_validate(read)) == keys_of(config)


@fuzzed
@given(CHANGES)
def test_what_is_left_at_its_default_may_be_left_out(changes):
    config = changed(changes)
    short = config.model_dump(mode="json", exclude_defaults=True)
    assert keys_of(PipelineConfig.model_validate(short)) == keys_of(config)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.floats(allow_nan=False, width=32),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
).filter(lambda value: "Infinity" not in json.dumps(value))


@fuzzed
@given(JSON, JSON, st.randoms(use_true_random=False))
def test_a_digest_tells_values_apart_and_no_orders(first, second, order):
    assume("\\ud" not in json.dumps([first, second]))  # lone surrogates are no text
    canonical = json.dumps(first, sort_keys=True), json.dumps(second, sort_keys=True)
    assert (digest_of(first) == digest_of(second)) == (canonical[0] == canonical[1])
    assert digest_of(shuffled(first, order)) == digest_of(first)
