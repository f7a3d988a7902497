"""What is refused before anything runs."""

from __future__ import annotations


def test_an_unknown_score_is_named_before_anything_runs(refused):
    code, text = refused(eval={"scores": [{"name": "atributes"}]})
    assert code == 2, text
    assert "eval.scores" in text and "did you mean attributes?" in text


def test_read_only_store(refused, tmp_path):
    """/proc refuses to make folders, for root too."""
    code, text = refused("run", store="/proc/ladd-store")
    assert code == 4, text
    assert "store /proc/ladd-store: cannot write runs/" in text
