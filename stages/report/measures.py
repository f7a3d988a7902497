"""What pages and tables call the measures other than the scores."""

from __future__ import annotations

MEASURES = {
    "fid": ("Fréchet distance", "lower"),
    "patch_fid": ("Fréchet distance of patches", "lower"),
    "kid": ("KID", "lower"),
    "cmmd": ("CMMD", "lower"),
    "precision": ("precision", "higher"),
    "recall": ("recall", "higher"),
    "diversity": ("diversity", "higher"),
    "seconds_per_picture": ("seconds per picture", "lower"),
}
"""Title and better direction of each measure other than the scores."""


def measure_words(name: str) -> tuple[str, str]:
    """Title and better direction of a measure; one of a further feature space names the space."""
    for known, (title, better) in MEASURES.items():
        if name.startswith(f"{known}_") and name not in MEASURES:
            return f"{title}, {name.removeprefix(f'{known}_').replace('_', ' ')}", better
    return MEASURES.get(name, (name, ""))
