"""Runs several configurations of one stage in one Ray cluster; each makes a separate artifact."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import compress, product
from queue import SimpleQueue
from threading import Thread
from typing import Any

import yaml

from pipeline.base.store import Artifact, ArtifactStore
from pipeline.cluster import ray_cluster
from pipeline.dag import STAGES
from pipeline.executor import execute, make
from pipeline.fields import types_at
from pipeline.observe import Observer
from pipeline.planning import PlannedStage, Selection, make_plan
from pipeline.typed_yaml import read_values
from schemas.config import PipelineConfig
from schemas.errors import ConfigError, LaddError

_Texts = tuple[str, ...]


@dataclass(frozen=True)
class Trial:
    """One point of the sweep."""

    settings: tuple[str, ...]
    """The settings of this trial, without those that all trials share."""
    config: PipelineConfig

    @property
    def name(self) -> str:
        """The trial's settings, as tables show them: those of `distill` without the section."""
        own = (setting.removeprefix("distill.") for setting in self.settings)
        return " ".join(own) or "as configured"


def make_trials(
    load: Callable[[Sequence[str]], PipelineConfig],
    settings: Sequence[str],
    one_at_a_time: bool = False,
) -> list[Trial]:
    """Make a trial for every combination of the settings' comma-separated values.

    With `one_at_a_time`, the first trial uses the first value of every setting, and each further
    trial replaces one of them by another value. `load` makes a configuration from settings. A value
    that is itself a list is written in brackets: `a.b=[1,0],[0,1]` has two values. Raises
    ConfigError for an invalid setting or configuration.
    """
    choices = [[f"{path}={value}" for value in values] for path, values in map(_split, settings)]
    if one_at_a_time:
        chosen, own = _around_first(choices)
    else:
        chosen = list(product(*choices))
        varied = [len(values) > 1 for values in choices]
        own = [tuple(compress(combination, varied)) for combination in chosen]
    return [Trial(named, load(combination)) for named, combination in zip(own, chosen, strict=True)]


def _around_first(choices: list[list[str]]) -> tuple[list[_Texts], list[_Texts]]:
    """Return the combinations that differ from the first values in at most one place, and the
    settings in which each differs.
    """
    first = tuple(values[0] for values in choices)
    chosen: list[_Texts] = [first]
    own: list[_Texts] = [()]
    for place, values in enumerate(choices):
        for value in values[1:]:
            chosen.append((*first[:place], value, *first[place + 1 :]))
            own.append((value,))
    return chosen, own


def _split(setting: str) -> tuple[str, list[str]]:
    path, sign, text = setting.partition("=")
    if not sign or not path:
        raise ConfigError(f"--set {setting!r} is not of the form section.field=value,value")
    values = read_values(text, types_at(path.split(".")), f"--set {path}")
    if not values:
        raise ConfigError(f"--set {path}= names no value")
    return path, [_text(v) for v in values]


def _text(value: Any) -> str:
    """Format a value for `--set`."""
    return yaml.safe_dump(value, default_flow_style=True).removesuffix("...\n").strip()


def run_trials(
    stage: str, trials: list[Trial], store: ArtifactStore, observer: Observer, at_once: int
) -> Iterator[tuple[Trial, Artifact | LaddError]]:
    """Make the stage's artifact of each trial, `at_once` in parallel; yield each when it is done.

    The stage's inputs are made first, one trial after another, because trials share most of them.
    Trials of one training, of several lengths say, follow each other, the shortest first: each
    begins where the one before it ended. A trial that fails does not stop the others. Each trial
    waits until Ray has the resources that it requests. Raises ConfigError if two trials make the
    same artifact.
    """
    _require_distinct(stage, trials, store)
    ready = []
    with ray_cluster(trials[0].config, lambda text: observer.warn("ray", text)):
        for trial in trials:
            needed = make_plan(trial.config, store, Selection(until=stage))
            before = [_kept(planned) if planned.name == stage else planned for planned in needed]
            try:
                execute(trial.config, store, before, observer)
            except LaddError as error:
                yield trial, error
            else:
                ready.append(trial)
        groups = _by_training(stage, ready, store)
        yield from _side_by_side(groups, lambda t: _run(stage, t, store, observer), at_once)


def _by_training(stage: str, trials: list[Trial], store: ArtifactStore) -> list[list[Trial]]:
    """Return the trials of each training, the shortest first."""
    course = STAGES[stage].module().course
    groups: dict[str, list[Trial]] = {}
    for trial in sorted(trials, key=lambda trial: course(trial.config).trunk):
        planned = make_plan(trial.config, store, Selection(until=stage))
        training = next(one.training for one in planned if one.name == stage)
        groups.setdefault(training, []).append(trial)
    return [*groups.values()]


def _require_distinct(stage: str, trials: list[Trial], store: ArtifactStore) -> None:
    seen: dict[str, Trial] = {}
    for trial in trials:
        needed = make_plan(trial.config, store, Selection(until=stage))
        key = next(planned.key for planned in needed if planned.name == stage)
        if key in seen:
            raise ConfigError(
                f"two trials make one artifact, {seen[key].name!r} and {trial.name!r}: give "
                "different values, of fields that change the result"
            )
        seen[key] = trial


def require_judged_alike(trials: list[Trial]) -> None:
    """Raise ConfigError if trials differ in the pictures that they are judged against."""
    for section in ("teacher", "prompts", "synthesize", "eval"):
        if any(
            getattr(trial.config, section) != getattr(trials[0].config, section) for trial in trials
        ):
            raise ConfigError(
                f"--score judges all trials on the same held-out prompts, but {section} differs "
                "between them: sweep it without --score"
            )


def _side_by_side(
    groups: list[list[Trial]], run: Callable[[Trial], Artifact], at_once: int
) -> Iterator[tuple[Trial, Artifact | LaddError]]:
    """Run groups of trials in daemon threads: a stopped command does not wait for its trainings to
    end.
    """
    waiting = deque(groups)
    finished: SimpleQueue[tuple[Trial, Artifact | BaseException]] = SimpleQueue()

    def work() -> None:
        while True:
            try:
                group = waiting.popleft()
            except IndexError:
                return
            for trial in group:
                try:
                    finished.put((trial, run(trial)))
                except BaseException as error:
                    finished.put((trial, error))

    for _ in range(min(at_once, len(groups))):
        Thread(target=work, daemon=True).start()
    try:
        for _ in itertools.chain(*groups):
            trial, result = finished.get()
            if isinstance(result, BaseException) and not isinstance(result, LaddError):
                raise result
            yield trial, result
    finally:
        waiting.clear()


def _kept(planned: PlannedStage) -> PlannedStage:
    return replace(planned, action="skip")


def _run(stage: str, trial: Trial, store: ArtifactStore, observer: Observer) -> Artifact:
    own = _TrialObserver(observer, trial.name)
    return make(Selection(only=stage), stage, trial.config, store, own)


class _TrialObserver(Observer):
    """Forwards the events and progress of one trial, labelled with its name."""

    def __init__(self, shown: Observer, name: str) -> None:
        super().__init__(shown.log_format)
        self._shown, self._name = shown, name

    def event(self, kind: str, **fields: Any) -> None:
        self.record(kind, **fields)
        self._shown.event(kind, **fields, trial=self._name)

    def warn(self, stage: str, text: str) -> None:
        self.event("warning", stage=stage, text=text)

    def progress(self, stage: str, unit: str, done: int, total: int) -> None:
        self._shown.progress(f"{stage} ({self._name})", unit, done, total)
