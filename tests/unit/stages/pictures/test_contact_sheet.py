"""A contact sheet holds every picture."""

from __future__ import annotations

import numpy as np

from stages.pictures.contact_sheet import draw_grid

RED, GREEN = (200, 10, 20), (10, 190, 30)


def test_grid_holds_every_picture_of_every_size():
    import io

    from PIL import Image

    wide, tall = (np.full((*s, 3), v, np.uint8) for s, v in (((40, 96), RED), ((96, 40), GREEN)))
    sheet = np.asarray(
        Image.open(
            io.BytesIO(
                draw_grid(["one", "two"], [("<b>x</b> " * 9, [wide] * 2), ("y", [tall] * 2)])
            )
        )
    )
    for value in (RED, GREEN):
        assert (sheet == value).all(-1).sum() == 2 * 40 * 96 * 4
