"""Which of the pictures the training draws."""

from __future__ import annotations

from schemas.config import PipelineConfig


def drawn_in_training(config: PipelineConfig) -> int:
    """Return how many samples the training draws, a sample that is drawn twice counted twice."""
    return config.distill.total_steps * config.distill.global_batch


def never_drawn(config: PipelineConfig, pictures: int) -> tuple[str, ...]:
    """Say how many of the pictures the training would never draw, if there are such."""
    drawn = drawn_in_training(config)
    if drawn >= pictures:
        return ()
    left = pictures - drawn
    return (
        f"{left:,} of {pictures:,} pictures ({left / pictures:.0%}) would never be drawn: "
        f"distill makes {config.distill.total_steps:,} updates of {config.distill.global_batch}, "
        f"which draw {drawn:,}",
    )
