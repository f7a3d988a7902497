"""Whether an evaluation judges by something that the student was not tuned by, and whether its
feature space can see what it should. Sentences for `plan`; raises nothing.
"""

from __future__ import annotations

from schemas.config import PipelineConfig, ScoreConfig


def warnings(config: PipelineConfig) -> list[str]:
    """One sentence, which names the field, for each weakness of `eval`."""
    found = []
    if config.eval.tuned and not independent_scores(config):
        reasons = [f"{score.name} {part}" for part, score in _tuned_by(config).items()]
        found.append(
            f"eval.scores: {' and '.join(reasons)}, so no score judges the tuned student "
            "independently; add one that did neither"
        )
    if config.eval.features.name == "clip_features":
        found.append(
            "eval.features: clip_features have unit length, so KID hardly sees a loss of "
            "diversity; take dino_features, with clip_features in eval.more_features for CMMD"
        )
    return found


def independent_scores(config: PipelineConfig) -> list[str]:
    """The scores of `eval` that neither made the pairs nor chose the scale of the adapters. The
    same score with other weights counts as another score.
    """
    used = {_model(score) for score in _tuned_by(config).values()}
    return [score.name for score in config.eval.scores if _model(score) not in used]


def _tuned_by(config: PipelineConfig) -> dict[str, ScoreConfig]:
    """What each score of the tuning did; a pair file comes from elsewhere."""
    made = {"made the pairs (pairs.reward)": config.pairs.reward} if not config.pairs.url else {}
    return made | {"chose the scale (dpo.chooser)": config.dpo.chooser}


def _model(score: ScoreConfig) -> tuple[str, str | None]:
    return score.name, score.model
