"""The errors that a user sees: one sentence each, and an exit code."""

import json


class LaddError(Exception):
    """A failure with one clear sentence for the user. `exit_code` is the command's exit code."""

    exit_code = 1


class StageFailed(LaddError):
    """A stage could not finish its work."""


class ProcessLost(StageFailed):
    """A process of the cluster has ended: the stage can be tried again."""


class ConfigError(LaddError):
    """Wrong usage or configuration."""

    exit_code = 2


class ArtifactError(LaddError):
    """An artifact or input is missing or damaged."""

    exit_code = 4


class UnusableSample(ValueError):
    """Why one sample cannot be used. It costs that sample alone: its sidecar records the text,
    whose beginning up to the first colon is the kind of failure that is counted.
    """


class ServiceUnavailable(ArtifactError):
    """A store or a hub does not answer at the moment: the only failure that is worth a retry."""


class Locked(LaddError):
    """Another run is using what this one would change."""

    exit_code = 5


class GateFailed(LaddError):
    """The work is done, but its result misses a gate of the configuration."""

    exit_code = 6


class CostReached(LaddError):
    """The run has cost what it may."""

    exit_code = 7


def text_of(error: BaseException) -> str:
    """Return an exception's text in one line, or its class if it has none."""
    return " ".join(str(error).split()) or type(error).__name__


def dump_error(error: LaddError) -> str:
    """Serialise an error as JSON; `load_error` restores it on another machine."""
    return json.dumps({"kind": type(error).__name__, "text": str(error)})


def load_error(text: str) -> LaddError:
    content = json.loads(text)
    known = (
        StageFailed,
        ProcessLost,
        ConfigError,
        ArtifactError,
        ServiceUnavailable,
        Locked,
        GateFailed,
        CostReached,
    )
    kinds = {kind.__name__: kind for kind in known}
    return kinds.get(content["kind"], LaddError)(content["text"])
