"""Token embeddings of prompts as rows of a file: packed without columns that are zero for every
prompt, and in 8 bits.

SD3 pads CLIP's tokens to T5's width with zeros. Legend: B prompts, L text tokens, D width, S values
of a packed row, a multiple of `BLOCK`.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

BLOCK = 64
"""Values that share a scale in 8 bits. Kept columns are rounded up to it."""


@dataclass(frozen=True)
class TokenLayout:
    """Which columns of a prompt's tokens (L, D) are kept."""

    runs: tuple[tuple[int, int], ...]
    """For tokens in a row: how many, and how many of their first columns are kept."""
    columns: int
    """D."""

    @classmethod
    def of(cls, tokens_LD: np.ndarray) -> TokenLayout:
        """The layout of all prompts, from the tokens of one: what is 0 there up to the end of a row
        is padding.
        """
        columns = tokens_LD.shape[1]
        used = [int(row.nonzero()[0].max(initial=-1)) + 1 for row in tokens_LD]
        kept = [min(-(-width // BLOCK) * BLOCK, columns) for width in used]
        runs = tuple((len(list(group)), width) for width, group in groupby(kept))
        return cls(runs, columns)

    @classmethod
    def read(cls, details: dict) -> TokenLayout:
        """From what `written` gave to a manifest."""
        return cls(tuple(map(tuple, details["runs"])), details["columns"])

    def written(self) -> dict:
        return {"runs": [list(run) for run in self.runs], "columns": self.columns}

    def pack(self, tokens_BLD: np.ndarray) -> np.ndarray:
        """Return (B, S) in the same dtype. Raises ValueError if a column that is left out holds
        anything but zeros.
        """
        import numpy as np

        parts, first = [], 0
        for tokens, width in self.runs:
            run = tokens_BLD[:, first : first + tokens]
            if run[:, :, width:].any():
                raise ValueError(f"a token has values beyond its first {width} columns")
            parts.append(run[:, :, :width].reshape(len(run), -1))
            first += tokens
        packed = np.concatenate(parts, axis=1)
        missing = -packed.shape[1] % BLOCK if packed.shape[1] else BLOCK
        return np.pad(packed, ((0, 0), (0, missing)))

    def unpack(self, packed_BS: np.ndarray) -> np.ndarray:
        """The inverse of `pack`: (B, L, D)."""
        import numpy as np

        tokens = sum(count for count, _ in self.runs)
        out = np.zeros((len(packed_BS), tokens, self.columns), packed_BS.dtype)
        first = start = 0
        for count, width in self.runs:
            values = packed_BS[:, start : start + count * width]
            out[:, first : first + count, :width] = values.reshape(len(values), count, width)
            first, start = first + count, start + count * width
        return out


def to_8_bits(packed_BS: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Round to 255 levels of each block's largest magnitude: codes (B, S) int8, and scales
    (B, S / BLOCK) float16. The error of a value is at most 0.4 % of that magnitude.
    """
    import numpy as np

    blocks = packed_BS.astype(np.float32).reshape(len(packed_BS), -1, BLOCK)
    scales = (np.abs(blocks).max(axis=2) / 127).astype(np.float16)
    divisors = scales.astype(np.float32)[:, :, None]
    codes = np.divide(blocks, divisors, out=np.zeros_like(blocks), where=divisors > 0)
    return codes.round().clip(-127, 127).astype(np.int8).reshape(packed_BS.shape), scales


def from_8_bits(codes_BS: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """The inverse of `to_8_bits`, but for its rounding: (B, S) float16."""
    import numpy as np

    blocks = codes_BS.reshape(len(codes_BS), -1, BLOCK) * scales.astype(np.float32)[:, :, None]
    return blocks.reshape(codes_BS.shape).astype(np.float16)
