"""Which text of a sample is its prompt. docs/data.md has the rules for users.

Knows members of a shard, not pictures.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from schemas.config import EncodeConfig
from schemas.errors import UnusableSample
from stages.texts.identity import clean, kind_of, lack_of

MEMBERS = ("txt", "caption", "text", "json")
FIELDS = ("caption", "prompt", "text")


def read_caption(members: Mapping[str, bytes], rules: EncodeConfig) -> str:
    """Return the cleaned caption of a sample. Raises UnusableSample saying what is wrong with it.

    The first of `MEMBERS` that is there counts, even if it is empty.
    """
    wanted: tuple[str, ...] = MEMBERS
    if rules.caption_member or rules.caption_field:
        wanted = (rules.caption_member or "json",)
    name = next((name for name in wanted if name in members), None)
    if name is None:
        raise UnusableSample(f"no caption ({_or(wanted)}) among its members: {_listed(members)}")
    if name.endswith("json"):
        return _of_json(members[name], name, rules)
    try:
        text = members[name].decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UnusableSample(f"its caption cannot be read: {name} is not UTF-8") from error
    if "\0" in text:
        raise UnusableSample(f"its caption cannot be read: {name} holds zero bytes, as UTF-16 does")
    return checked_prompt(text, f"its {name}")


def checked_prompt(text: Any, what: str) -> str:
    """Clean a prompt. Raises UnusableSample if it is not text, or says nothing."""
    if not isinstance(text, str):
        raise UnusableSample(f"{what} is {kind_of(text)}, not text")
    prompt = clean(text)
    if lack := lack_of(prompt):
        raise UnusableSample(f"{what} is {lack}")
    return prompt


class _Twice:
    """Stands for a field that a json object holds twice."""


def _of_json(content: bytes, name: str, rules: EncodeConfig) -> str:
    try:
        record = json.loads(content, object_pairs_hook=_object)
    except (ValueError, RecursionError) as error:
        raise UnusableSample(f"its caption cannot be read: {name} is not JSON: {error}") from error
    if isinstance(record, str) and rules.caption_field is None:
        return checked_prompt(record, f"its {name}")
    if not isinstance(record, dict):
        raise UnusableSample(f"its {name} is {kind_of(record)}, not an object with a caption")
    fields = (rules.caption_field,) if rules.caption_field else FIELDS
    for field in fields:
        value = record.get(field)
        if value is not None and value != "":
            return _of_field(value, f"its {name}'s {field}", rules)
    raise UnusableSample(f"its {name} has no {_or(fields)}")


def _of_field(value: Any, what: str, rules: EncodeConfig) -> str:
    if value is _Twice:
        raise UnusableSample(f"{what} is there twice")
    if isinstance(value, list) and value and rules.caption_list == "first":
        value = value[0]
    return checked_prompt(value, what)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        found[name] = _Twice if name in found and found[name] != value else value
    return found


def _or(names: tuple[str, ...]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} or {names[-1]}"


def _listed(members: Mapping[str, bytes]) -> str:
    return ", ".join(sorted(members)) or "none"
