"""Which of the pictures the training draws."""

from __future__ import annotations

from schemas.config import PipelineConfig


def never_drawn(config: PipelineConfig, pictures: int) -> tuple[str, ...]:
    """Say how many of the pictures the training would never draw, if there are such."""
    drawn = config.distill.samples_drawn
    if drawn >= pictures:
        return ()
    left = pictures - drawn
    return (
        f"{left:,} of {pictures:,} pictures ({left / pictures:.0%}) would never be drawn: "
        f"distill makes {config.distill.total_steps:,} updates of {config.distill.global_batch}, "
        f"which draw {drawn:,}; synthesize.count=auto makes those alone",
    )
