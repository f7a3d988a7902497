"""Which text of a sample becomes its prompt, and what is no prompt."""

from __future__ import annotations

import codecs
import json

import pytest
from pydantic import ValidationError

from schemas.config import EncodeConfig
from schemas.errors import UnusableSample
from stages.texts.captions import checked_prompt, read_caption


def caption(members, **rules):
    members = {
        name: content if isinstance(content, bytes) else json.dumps(content).encode()
        for name, content in members.items()
    }
    return read_caption(members, EncodeConfig(**rules))


@pytest.mark.parametrize(
    ("members", "rules", "expected"),
    [
        ({"txt": b"a", "caption": b"b", "json": {"caption": "c"}}, {}, "a"),
        ({"text": b"a", "caption": b"b"}, {}, "b"),
        ({"json": {"text": "t", "prompt": "p", "caption": "c"}}, {}, "c"),
        ({"json": {"text": "t", "prompt": "p", "caption": None}}, {}, "p"),
        ({"json": {"text": "t", "caption": ""}}, {}, "t"),
        ({"json": "a bare text"}, {}, "a bare text"),
        ({"txt": b"a", "json": {"blip": "b"}}, {"caption_field": "blip"}, "b"),
        ({"txt": b"a", "alt.txt": b"b"}, {"caption_member": ".ALT.txt"}, "b"),
        ({"x.json": {"c": "b"}}, {"caption_member": "x.json", "caption_field": "c"}, "b"),
        ({"json": {"caption": ["one", "two"]}}, {"caption_list": "first"}, "one"),
        ({"txt": codecs.BOM_UTF8 + b"a red  circle\r\n"}, {}, "a red circle"),
        ({"json": codecs.BOM_UTF8 + b'{"caption": "a"}'}, {}, "a"),
        ({"json": '{"caption": "a"}'.encode("utf-16")}, {}, "a"),
        ({"txt": "ein großer Kreis 圆".encode()}, {}, "ein großer Kreis 圆"),
        ({"txt": b"42"}, {}, "42"),  # text that looks like a number is text
    ],
)
def test_the_rules_choose_one_caption(members, rules, expected):
    assert caption(members, **rules) == expected


@pytest.mark.parametrize(
    ("members", "rules", "reason"),
    [
        ({"jpg": b""}, {}, "no caption (txt, caption, text or json) among its members: jpg"),
        ({"txt": b"a"}, {"caption_member": "alt"}, "no caption (alt) among its members: txt"),
        ({"txt": b"", "json": {"caption": "c"}}, {}, "its txt is empty"),
        ({"txt": b" \r\n\t"}, {}, "its txt is empty"),
        ({"txt": "\ufeff\u200b\u200d\u2060".encode()}, {}, "its txt is empty"),
        ({"txt": b"NaN"}, {}, "its txt is a missing value written as text: NaN"),
        ({"txt": b"\xff"}, {}, "its caption cannot be read: txt is not UTF-8"),
        ({"txt": "a circle".encode("utf-16-le")}, {}, "holds zero bytes"),
        ({"json": {"caption": ["a", "b"]}}, {}, "its json's caption is a list, not text"),
        ({"json": {"caption": []}}, {"caption_list": "first"}, "is a list, not text"),
        ({"json": {"caption": [1]}}, {"caption_list": "first"}, "is a number, not text"),
        ({"json": {"caption": 5, "prompt": "p"}}, {}, "its json's caption is a number, not text"),
        ({"json": b'{"caption": NaN}'}, {}, "its json's caption is NaN, not text"),
        ({"json": {"caption": True}}, {}, "its json's caption is true or false, not text"),
        ({"json": {"caption": {"en": "a"}}}, {}, "its json's caption is an object, not text"),
        ({"json": {"caption": "\u200b"}}, {}, "its json's caption is empty"),
        ({"json": {"caption": None}}, {}, "its json has no caption, prompt or text"),
        ({"json": {"a": "b"}}, {"caption_field": "c"}, "its json has no c"),
        ({"json": b'{"caption": "a", "caption": "b"}'}, {}, "its json's caption is there twice"),
        ({"json": ["a"]}, {}, "its json is a list, not an object"),
        ({"json": None}, {}, "its json is null, not an object"),
        ({"json": "a"}, {"caption_field": "c"}, "its json is a text, not an object"),
        ({"json": b'{"caption": "a"'}, {}, "its caption cannot be read: json is not JSON"),
        ({"json": b"[" * 100_000}, {}, "its caption cannot be read: json is not JSON"),
        ({"json": b""}, {}, "its caption cannot be read: json is not JSON"),
    ],
)
def test_what_is_no_caption_is_said(members, rules, reason):
    with pytest.raises(UnusableSample) as error:
        caption(members, **rules)
    assert reason in str(error.value)


def test_a_lone_surrogate_of_json_can_be_stored():
    assert caption({"json": b'{"caption": "a \\ud83d b"}'}).encode() == b"a b"


@pytest.mark.parametrize("value", [None, 3, b"a", ["a"], float("nan")])
def test_a_prompt_is_text(value):
    with pytest.raises(UnusableSample, match="not text"):
        checked_prompt(value, "its prompt")


def test_a_field_needs_json():
    with pytest.raises(ValidationError, match="caption_member is txt"):
        EncodeConfig(caption_member="txt", caption_field="caption")
