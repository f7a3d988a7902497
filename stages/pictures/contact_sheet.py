"""A picture that compares samplers: one row per prompt, one column per sampler, the same seed along
a row.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

_BACK, _TEXT, _QUIET = (250, 250, 250), (30, 30, 30), (120, 120, 120)
_GAP = 6


def draw_grid(columns: Sequence[str], rows: Sequence[tuple[str, Sequence[np.ndarray]]]) -> bytes:
    """Return PNG bytes. Each row is a prompt and one uint8 picture (H, W, 3) for each column.

    Small pictures are enlarged by whole factors without smoothing.
    """
    tallest = max(picture.shape[0] for _, pictures in rows for picture in pictures)
    widest = max(picture.shape[1] for _, pictures in rows for picture in pictures)
    zoom = max(1, 192 // max(tallest, widest))
    font, small = ImageFont.load_default(15), ImageFont.load_default(13)
    label, header = 230, 30
    cell = widest * zoom
    heights = [max(max(p.shape[0] for p in pictures) * zoom, 40) for _, pictures in rows]
    width = label + len(columns) * (cell + _GAP) + _GAP
    sheet = Image.new("RGB", (width, header + sum(heights) + _GAP * (len(rows) + 1)), _BACK)
    draw = ImageDraw.Draw(sheet)
    for i, name in enumerate(columns):
        draw.text(
            (label + i * (cell + _GAP) + cell // 2, header // 2), name, _TEXT, font, anchor="mm"
        )
    top = header
    for (prompt, pictures), height in zip(rows, heights, strict=True):
        text = "\n".join(textwrap.wrap(prompt, 30)[:4])
        bucket = f"{pictures[0].shape[1]}x{pictures[0].shape[0]}"
        draw.multiline_text((10, top + height // 2 - 8), text, _TEXT, small, anchor="lm")
        draw.text((10, top + height - 8), bucket, _QUIET, small, anchor="lm")
        for i, picture in enumerate(pictures):
            image = Image.fromarray(picture)
            image = image.resize(
                (image.width * zoom, image.height * zoom), Image.Resampling.NEAREST
            )
            left = label + i * (cell + _GAP) + (cell - image.width) // 2
            sheet.paste(image, (left, top + (height - image.height) // 2))
        top += height + _GAP
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG")
    return buffer.getvalue()
