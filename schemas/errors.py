"""The errors that a user meets: one sentence each, and the exit code that goes with it."""


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
