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


class ServiceUnavailable(ArtifactError):
    """A store or a hub does not answer for now: the one failure that is worth another try."""


class Locked(LaddError):
    """Another run is at work on what this one would change."""

    exit_code = 5


class GateFailed(LaddError):
    """The work is done, and its result misses a demand of the configuration."""

    exit_code = 6


def dump_error(error: LaddError) -> str:
    """JSON that `load_error` makes the same error of, on another machine."""
    return json.dumps({"kind": type(error).__name__, "text": str(error)})


def load_error(text: str) -> LaddError:
    content = json.loads(text)
    known = (StageFailed, ConfigError, ArtifactError, ServiceUnavailable, Locked, GateFailed)
    kinds = {kind.__name__: kind for kind in known}
    return kinds.get(content["kind"], LaddError)(content["text"])
