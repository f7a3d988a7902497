"""Models of the hub that a run will need, looked at before it starts: whether they may be read and
hold the files that are used, and how many bytes are still to be downloaded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from schemas.errors import ConfigError
from stages.teachers.hub import refuse

_TIMEOUT = 10.0
"""Seconds."""


@dataclass(frozen=True)
class HubModel:
    """A model that a field of the configuration names."""

    field: str
    model: str
    revision: str | None
    patterns: Sequence[str]
    """Of the files that are used, ..."""
    ignored: Sequence[str] = ()
    """... but for these."""
    required: Sequence[str] = ()
    """Patterns, each of which some file must match."""
    check: Callable[[Path], None] | None = None
    """Raises ConfigError unless a folder holds all that is used."""

    @property
    def repository(self) -> tuple[str, str | None]:
        """What is asked for, whatever field names it."""
        return self.model, self.revision

    def to_download(self) -> int:
        """Return the bytes that are not on this machine. Raises ConfigError for a model that is
        gated, is not there or lacks files, and ServiceUnavailable if the hub does not answer.

        The hub is asked only for what is not in its cache.
        """
        if Path(self.model).exists() or self._is_cached():
            return 0
        from huggingface_hub import HfApi, try_to_load_from_cache

        try:
            api = HfApi()
            api.auth_check(self.model)
            found = api.model_info(
                self.model, revision=self.revision, timeout=_TIMEOUT, files_metadata=True
            )
        except Exception as error:  # of the hub and the network
            refuse(error, self.model, self.revision or "main", self.field)
        sizes = {row.rfilename: row.size or 0 for row in found.siblings or ()}
        for pattern in self.required:
            if not _matching(sizes, [pattern]):
                raise ConfigError(
                    f"{self.field}: {self.model!r} on the hub has no file {pattern} (revision "
                    f"{self.revision or 'main'}); name a model that has it"
                )
        return sum(
            sizes[name]
            for name in _matching(sizes, self.patterns, self.ignored)
            if not isinstance(
                try_to_load_from_cache(self.model, name, revision=found.sha or self.revision), str
            )
        )

    def _is_cached(self) -> bool:
        """Whether all that is used is in the hub's cache."""
        from huggingface_hub import snapshot_download

        try:
            folder = snapshot_download(
                self.model, revision=self.revision, local_files_only=True, allow_patterns=["*.json"]
            )
            if self.check is not None:
                self.check(Path(folder))
        except Exception:  # not there, or not whole: the hub is asked
            return False
        return True


def _matching(
    names: Iterable[str], patterns: Sequence[str], ignored: Sequence[str] = ()
) -> list[str]:
    """Return the names that match a pattern, and none of the `ignored`."""

    def matches(name: str, among: Sequence[str]) -> bool:
        return any(fnmatch(name, pattern) for pattern in among)

    return [name for name in names if matches(name, patterns) and not matches(name, ignored)]
