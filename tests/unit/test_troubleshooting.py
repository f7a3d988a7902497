"""The troubleshooting pages and the code say the same."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support.command import ROOT
from tests.support.messages import HOLE, messages, template, words

pytestmark = pytest.mark.slow

PAGES = ROOT / "docs/troubleshooting"
OTHERS_RAISE = (
    "pipeline/machine.py",
    "pipeline/base/address_errors.py",
    "pipeline/base/foreign.py",
)
"""Modules that return messages for others to say."""
COMPLETE = (
    "pipeline/attempts.py",
    "pipeline/base/address*.py",
    "pipeline/base/artifact.py",
    "pipeline/base/checkpoint_list.py",
    "pipeline/base/claims.py",
    "pipeline/base/foreign.py",
    "pipeline/base/lease.py",
    "pipeline/base/mapping.py",
    "pipeline/base/on_*.py",
    "pipeline/base/processes.py",
    "pipeline/base/shards.py",
    "pipeline/base/storage_errors.py",
    "pipeline/base/store.py",
    "pipeline/base/training.py",
    "pipeline/cluster.py",
    "pipeline/executor.py",
    "pipeline/machine.py",
    "pipeline/preflight.py",
    "pipeline/stage_task.py",
    "stages/scores/pretrained.py",
    "stages/teachers/*.py",
)
"""Modules (or patterns of them) each of whose messages has an entry."""


def said(*patterns: str, least: int = 4) -> dict[str, set[str]]:
    """Messages by the modules that have them."""
    paths = sorted(path for pattern in patterns for path in ROOT.glob(pattern))
    names = [path.relative_to(ROOT).as_posix() for path in paths]
    return {
        name: messages(ROOT / name, all_strings=name in OTHERS_RAISE, least=least) for name in names
    }


def headings(page: Path) -> list[str]:
    return re.findall(r"^### (.+)$", page.read_text(), re.M)


def begins(message: str, heading: str) -> bool:
    """Whether a heading is a message, or its beginning."""
    return " ".join(message.split()).startswith(template(heading).removesuffix(HOLE).rstrip())


@pytest.mark.parametrize("page", sorted(PAGES.glob("*.md")), ids=lambda page: page.stem)
def test_every_heading_is_a_message_of_the_code(page):
    """Bug: change a message, and leave its entry as it was."""
    found = said("schemas/**/*.py", "pipeline/**/*.py", "stages/**/*.py", least=2).values()
    known = {message for texts in found for message in texts}
    entries = headings(page)
    assert entries
    for heading in entries:
        assert len(words(template(heading))) >= 2, f"too short to tell: {heading}"
        assert any(begins(message, heading) for message in known), f"no such message: {heading}"


def test_every_message_of_these_modules_has_an_entry():
    entries = [heading for page in PAGES.glob("*.md") for heading in headings(page)]
    found = said(*COMPLETE)
    assert all(list(ROOT.glob(pattern)) for pattern in COMPLETE)
    missing = [
        f"{name}: {message}"
        for name, texts in found.items()
        for message in sorted(texts)
        if not any(begins(message, heading) for heading in entries)
    ]
    assert not missing, "\n".join(missing)


@pytest.mark.parametrize("page", sorted(PAGES.glob("*.md")), ids=lambda page: page.stem)
def test_every_entry_has_a_cause_and_a_fix(page):
    for entry in re.split(r"^### ", page.read_text(), flags=re.M)[1:]:
        heading, rest = entry.split("\n", 1)
        assert rest.startswith("**Cause.** ") and "\n**Fix.** " in rest, heading
    assert len(set(headings(page))) == len(headings(page))


def test_the_index_links_every_page():
    index = (ROOT / "docs/troubleshooting.md").read_text()
    linked = set(re.findall(r"\(troubleshooting/([\w-]+\.md)\)", index))
    assert {page.name for page in PAGES.glob("*.md")} <= linked


def test_messages_are_read_from_the_source(tmp_path):
    module = tmp_path / "module.py"
    module.write_text('''"""A docstring of more than four words."""
def fail(x, warn):
    text = "one of two texts of it" if x else f"the other {x} of both texts"
    warn("stage", f"careful now, {x.name!r} is " "rather long")
    raise ConfigError(text) from None
    print("nobody raises or warns with this")
    raise StageFailed("three words only")
''')
    found = {
        "one of two texts of it",
        "the other {} of both texts",
        "careful now, {} is rather long",
    }
    assert messages(module) == found
    assert messages(module, all_strings=True) - found == {"nobody raises or warns with this"}
