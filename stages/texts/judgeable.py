"""Found before work: prompts from files that a score cannot judge.

The scores of the shapes world read what a caption states, and know no other prompts.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from itertools import islice

from schemas.config import FileSource, PipelineConfig
from schemas.errors import ConfigError
from stages.scores import CAPTION_SCORES
from stages.shapes_world.captions import MAX_WORDS, CaptionError, parse
from stages.texts.identity import split_of
from stages.texts.prompt_files import Row
from stages.texts.sources import EVAL, evaluated, read_rows

_ROWS_LOOKED_AT = 20_000
"""Of each source: `plan` must stay fast. A stage looks at the others when it begins."""


def check_judged(config: PipelineConfig, field: str, scores: Iterable[str], split: str) -> None:
    """Raise ConfigError, naming field, score and prompt, if one of the scores cannot judge a prompt
    of a file. The splits `train` and `held_out` are those of `prompts.sources`; `evaluated` is what
    `eval` judges on: the prompts in `eval.url`, or those held out.
    """
    judges = [score for score in scores if score in CAPTION_SCORES]
    if not judges:
        return
    for row in _prompts(config, split):
        _require_caption(row.prompt or "", f"{field}: {judges[0]}", f" ({row.source} {row.place})")


def require_judged(field: str, scores: Iterable[str], prompts: Iterable[str]) -> None:
    """Raise ConfigError, naming field, score and prompt, if a score cannot judge a prompt."""
    for score in (score for score in scores if score in CAPTION_SCORES):
        for prompt in prompts:
            _require_caption(prompt, f"{field}: {score}")


def _require_caption(prompt: str, score: str, where: str = "") -> None:
    try:
        parse(prompt)
    except CaptionError as error:
        raise ConfigError(
            f"{score} judges only captions of the shapes world, and {error}{where}; name another "
            "score, such as clip_score, or other prompts"
        ) from error


def _prompts(config: PipelineConfig, split: str) -> Iterator[Row]:
    """Yield the first rows that come through the cleaning, as far as it needs no tokenizer."""
    if split == "evaluated" and (source := evaluated(config)) is not None:
        rows = islice(read_rows(source, EVAL), _ROWS_LOOKED_AT)
        yield from (row for row in rows if row.prompt is not None)
        return
    prompts = config.prompts
    blocked = [re.compile(pattern, re.IGNORECASE) for pattern in prompts.block]
    longest = prompts.max_tokens or MAX_WORDS  # no word has less than a token
    files = [source for source in prompts.sources if isinstance(source, FileSource)]
    drawn = min(_ROWS_LOOKED_AT, prompts.count or _ROWS_LOOKED_AT)
    for source in files:
        for row in islice(read_rows(source), drawn):
            text = row.prompt
            if text is None or len(text.split()) > longest:
                continue
            if any(pattern.search(text) for pattern in blocked):
                continue
            held = split_of(text, prompts.held_out_fraction) == "held_out"
            if held == (split != "train"):
                yield row
