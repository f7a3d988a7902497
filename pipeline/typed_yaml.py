"""YAML as the configuration means it: where a field holds text, `no`, `6180689` and `12e45678` are
text as they are written. Repeated keys are refused, which PyYAML would lose.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import GenericAlias
from typing import Any

import yaml

from pipeline.fields import WHOLE, Types, below, is_text, may_be_text
from schemas.errors import ConfigError, text_of

_FastLoader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""Ten times as fast in C, where PyYAML was built with it."""
_TEXT = "tag:yaml.org,2002:str"
_LARGEST = 1_000_000
"""Values that a document may stand for."""
_NULLS = ("", "~", "null", "Null", "NULL")
_NOT_YAML = (
    *(yaml.YAMLError, UnicodeDecodeError, RecursionError),
    *(ValueError, LookupError, TypeError, AttributeError, OverflowError),
)
"""The latter come from values that their tags do not fit: `2024-99-99`, `!!int ''`."""


def read_document(content: bytes, where: str) -> Any:
    """Return what a YAML file holds; of any encoding that its byte order mark tells."""
    try:
        return _constructed(yaml.compose(content, _FastLoader), WHOLE, where)
    except _NOT_YAML as error:
        raise ConfigError(f"{where} cannot be read: {_told(error)}") from error


def read_value(text: str, types: Types, where: str) -> Any:
    """Return the value that is typed for a place that holds one of `types`. Text is taken as it is
    typed, but for quotes around it.
    """
    text = text.strip()
    _require_utf8(text, where)
    quoted, nested = text[:1] in ("'", '"'), text[:1] in ("[", "{")
    if not types or (may_be_text(types) and not quoted and not (nested and not is_text(types))):
        return None if text in _NULLS and (type(None) in types or not text) else text
    try:
        node = yaml.compose(text, yaml.SafeLoader)
        if node is not None and node.end_mark.index < len(text):
            rest = text[node.end_mark.index :].strip()
            raise ConfigError(f"{where}: {rest!r} is left over of {text!r}; put quotes around it")
        return _constructed(node, types, where)
    except _NOT_YAML as error:
        raise ConfigError(f"{where}: {text!r} is not a YAML value: {_told(error)}") from error


def read_values(text: str, types: Types, where: str) -> list[Any]:
    """Return the values, separated by commas, that are typed for one place."""
    try:
        node = yaml.compose(f"[{text}]", yaml.SafeLoader)
        values: list[Any] = _constructed(node, [GenericAlias(list, (one,)) for one in types], where)
    except _NOT_YAML as error:
        raise ConfigError(f"{where}: {text!r} is not a list of YAML values") from error
    return values


def to_yaml(documents: Sequence[Any]) -> str:
    """Return documents as YAML, texts of several lines as they are read."""
    return yaml.dump_all(documents, Dumper=_Dumper, sort_keys=False, width=110, allow_unicode=True)


class _Dumper(yaml.SafeDumper):
    """Writes texts of several lines as blocks, and the same mapping twice as two."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _block(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar(_TEXT, text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _block)


def _constructed(node: Any, types: Types, where: str) -> Any:
    if node is None:
        return None
    if _size(node, {}) > _LARGEST:
        raise ConfigError(f"{where}: its aliases (*name) stand for more than {_LARGEST:,} values")
    _settle(node, types, where, set())
    return _FastLoader("").construct_document(node)


def _size(node: Any, known: dict[int, int]) -> int:
    """Return how many values a node stands for, each alias counted as what it repeats: nine lists
    of nine aliases each are a billion. What contains itself has no end.
    """
    if id(node) in known:
        return known[id(node)]
    known[id(node)] = _LARGEST + 1  # while it is counted: it contains itself
    inside: list[Any] = []
    if isinstance(node, yaml.SequenceNode):
        inside = node.value
    elif isinstance(node, yaml.MappingNode):
        inside = [one for pair in node.value for one in pair]
    known[id(node)] = 1 + sum(_size(one, known) for one in inside)
    return known[id(node)]


def _settle(node: Any, types: Types, where: str, seen: set[int]) -> None:
    """Mark plain scalars as text where the configuration holds text."""
    if id(node) in seen:
        return
    seen.add(id(node))
    if isinstance(node, yaml.ScalarNode):
        _require_utf8(node.value, where)
    if isinstance(node, yaml.MappingNode):
        keys: set[str] = set()
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise ConfigError(f"{where}: {_line(key)}a name is no text")
            if key.value in keys:
                raise ConfigError(f"{where}: {_line(key)}{key.value!r} is there twice")
            keys.add(key.value)
            _settle(value, below(types, key.value), where, seen)
    elif isinstance(node, yaml.SequenceNode):
        for place, value in enumerate(node.value):
            _settle(value, below(types, place), where, seen)
    elif not node.style and may_be_text(types) and not node.tag.endswith(":null"):
        node.tag = _TEXT


def _require_utf8(text: str, where: str) -> None:
    """Raise ConfigError for half a letter, which an argument or an escape may hold."""
    if "\0" in text or any("\ud800" <= letter <= "\udfff" for letter in text):
        raise ConfigError(f"{where}: {text!a} is not text in UTF-8")


def _line(node: Any) -> str:
    return f"line {node.start_mark.line + 1}: "


def _told(error: BaseException) -> str:
    text = text_of(error)
    if "unknown escape" in text:
        return f"{text}; in double quotes a backslash begins an escape: use single quotes"
    if "cannot start any token" in text:
        return f"{text}; indent with spaces, and quote what begins with a special character"
    if isinstance(error, (yaml.reader.ReaderError, UnicodeDecodeError)):
        return f"{text}; save it as UTF-8"
    return text
