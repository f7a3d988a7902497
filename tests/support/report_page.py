"""The report's page as a browser would read it."""

from __future__ import annotations

import json
from html.parser import HTMLParser

import pytest


class Page(HTMLParser):
    """What a browser would make of the page: tags with attributes, visible text, scripts."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.pieces: list[str] = []
        self._inside: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag in ("script", "style"):
            self._inside.append(tag)
            if tag == "script":
                self.scripts.append("")

    def handle_endtag(self, tag):
        if self._inside and self._inside[-1] == tag:
            self._inside.pop()

    def handle_data(self, data):
        if not self._inside:
            self.pieces.append(data)
        elif self._inside[-1] == "script":
            self.scripts[-1] += data

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.pieces).split())

    def attributes(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]

    @property
    def figures(self) -> dict:
        """The data block that the charts are drawn from."""
        scripts = zip(self.scripts, self.attributes("script"), strict=True)
        (block,) = [text for text, attributes in scripts if attributes.get("id") == "figures"]
        return json.loads(block, parse_constant=lambda name: pytest.fail(f"{name} in JSON"))
