"""The errors that a user meets: one sentence each, and the exit code that goes with it."""

import json


class LaddError(Exception):
    """A failure with one clear sentence for the user. `exit_code` is what the command ends with."""

    exit_code = 1


class StageFailed(LaddError):
    """A stage could not finish its work."""


class ConfigError(LaddError):
    """Wrong usage or configuration."""

    exit_code = 2


class ArtifactError(LaddError):
    """An artifact or input is missing or damaged."""

    exit_code = 4


class GateFailed(LaddError):
    """The work is done, and its result misses a demand of the configuration."""

    exit_code = 6


def dump_error(error: LaddError) -> str:
    """JSON that `load_error` makes the same error of, on another machine."""
    return json.dumps({"kind": type(error).__name__, "text": str(error)})


def load_error(text: str) -> LaddError:
    content = json.loads(text)
    kinds = {kind.__name__: kind for kind in LaddError.__subclasses__()}
    return kinds.get(content["kind"], LaddError)(content["text"])
