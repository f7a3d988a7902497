"""Finds equal and nearly equal texts among millions, out of core: MinHash signatures in a file,
bands sorted in numpy.

Memory is a few dozen bytes a text. Follows Broder 1997 and the banding of Leskovec et al., Mining
of Massive Datasets, chapter 3; datasketch computes the signatures.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

PERMUTATIONS = 64
BANDS = 16
SHINGLE = 5
_CHUNK = 1 << 16


def signatures(texts: list[str]) -> np.ndarray:
    """MinHash signatures (n, 64) uint32 of the case-folded texts' five-character shingles."""
    from datasketch import MinHash  # brings scipy, and `plan` imports this file

    if not texts:
        return np.empty((0, PERMUTATIONS), np.uint32)
    shingles = [_shingles(text.casefold()) for text in texts]
    hashes = MinHash.bulk(shingles, num_perm=PERMUTATIONS, seed=1)
    return np.stack([h.hashvalues for h in hashes]).astype(np.uint32)


def _shingles(text: str) -> list[bytes]:
    padded = f" {text} "
    return [padded[i : i + SHINGLE].encode() for i in range(max(1, len(padded) - SHINGLE + 1))]


def first_of_equals(path: Path, total: int) -> np.ndarray:
    """Mask (total,) bool: the first row of each distinct 16-byte digest in the file."""
    keep = np.zeros(total, bool)
    if total:
        digests = np.memmap(path, dtype="V16", mode="r", shape=(total,))
        keep[np.unique(digests.view("S16"), return_index=True)[1]] = True
    return keep


def first_of_similar(path: Path, keep: np.ndarray, threshold: float) -> np.ndarray:
    """Return a thinner mask: drop each row whose estimated Jaccard similarity to an earlier kept
    row reaches `threshold`.

    Candidates share one of 16 bands of 4 values; each is compared only to the first survivor of its
    group.
    """
    table = np.memmap(path, dtype=np.uint32, mode="r", shape=(len(keep), PERMUTATIONS))
    keep = keep.copy()
    width = PERMUTATIONS // BANDS
    for band in range(BANDS):
        rows = np.flatnonzero(keep)
        hashes = np.concatenate(
            [
                _band_hash(table, rows[start : start + _CHUNK], band, width)
                for start in range(0, len(rows), _CHUNK)
            ]
        )
        order = np.argsort(hashes, kind="stable")
        ordered = hashes[order]
        starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
        firsts = np.repeat(starts, np.diff(np.r_[starts, len(ordered)]))
        later = np.flatnonzero(firsts != np.arange(len(ordered)))
        for start in range(0, len(later), _CHUNK):
            places = later[start : start + _CHUNK]
            row, first = rows[order[places]], rows[order[firsts[places]]]
            alike = (table[row] == table[first]).mean(axis=1) >= threshold
            keep[row[alike]] = False
    return keep


def _band_hash(table: np.ndarray, rows: np.ndarray, band: int, width: int) -> np.ndarray:
    """A 64-bit mix of one band's values, for grouping."""
    values = table[rows, band * width : (band + 1) * width].astype(np.uint64)
    mixed = np.zeros(len(rows), np.uint64)
    for column in range(width):
        mixed = (mixed ^ values[:, column]) * np.uint64(0x9E3779B97F4A7C15)
        mixed ^= mixed >> np.uint64(29)
    return mixed
