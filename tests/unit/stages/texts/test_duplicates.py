"""Equal and similar prompts are found."""

from __future__ import annotations

import numpy as np

from stages.texts.duplicates import first_of_equals, first_of_similar, signatures


def test_similarity_estimate_agrees_with_jaccard(tmp_path):
    """Every pair that is surely alike is dropped, none that is surely different."""
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list("abcdefgh"), 6)) for _ in range(300)]
    texts = [" ".join(rng.choice(words, 12)) for _ in range(200)]
    copies = [text[:-1] for text in texts[:50]]
    path = tmp_path / "similar.bin"
    path.write_bytes(signatures(texts + copies).tobytes())
    keep = first_of_similar(path, np.ones(250, bool), 0.8)
    assert keep[:200].all() and not keep[200:].any()


def test_first_of_equals(tmp_path):
    path = tmp_path / "equal.bin"
    path.write_bytes(b"".join(bytes([value]) * 16 for value in (1, 2, 1, 3, 2)))
    assert first_of_equals(path, 5).tolist() == [True, True, False, True, False]
    assert first_of_equals(path, 0).tolist() == []
