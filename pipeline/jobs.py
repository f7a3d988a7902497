"""Runs on a Ray cluster that is up: what Ray's job server is asked, and what it answers.

A run there is the same command with the same configuration, in a working folder that holds what it
names on this machine (`pipeline.travelling`). It resumes from the store like any other.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import re
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipeline.base.foreign import sentence
from pipeline.config import config_yaml
from pipeline.travelling import Luggage
from schemas.config import PipelineConfig
from schemas.errors import ArtifactError, ConfigError, LaddError, ServiceUnavailable

_CONFIG_FILE = "ladd-run.yaml"
_OURS = "ladd-pipeline"
"""The key in a job's metadata by which we know our own."""
_VARIABLE = "RAY_API_SERVER_ADDRESS"
_VERSIONS_PATIENCE = 180.0
"""Seconds for the command on the cluster to say its versions."""
_HEAD_PATIENCE = 120.0
"""Seconds for the agent of a head that has just started to be there."""
_NOT_YET = "No available agent"
_UNWINDING = 60
"""Seconds that a stopped run has to end its Ray tasks and give back its leases: Ray's own 3 are too
few.
"""
_STOP_PATIENCE = 120.0
"""Seconds for a stopped run to have ended."""
_RECONNECTS = 20
"""How often a lost connection to the log is made again, a second apart and more."""
_ENDED = ("SUCCEEDED", "FAILED", "STOPPED")


@dataclass(frozen=True)
class JobRow:
    """A run on the cluster."""

    id: str
    name: str
    state: str
    started: datetime | None
    seconds: float
    exit_code: int | None
    command: str

    @property
    def has_ended(self) -> bool:
        return self.state in _ENDED


class Jobs:
    """The job server of a Ray cluster."""

    def __init__(self, address: str) -> None:
        """Connect. Raises ConfigError if Ray's job client is not installed or the cluster wants a
        token, ServiceUnavailable if nobody answers.
        """
        from ray.job_submission import JobSubmissionClient

        self.address = address
        with self._explained(), _address_of_ray(address):
            self._client: Any = JobSubmissionClient(address)

    def versions(self) -> dict[str, Any]:
        """Return what `ladd-pipeline version --json` says on the cluster's head."""
        with self._explained():
            probe = self._started(
                entrypoint=f"{_OURS} version --json", metadata={"purpose": "versions"}
            )
            deadline = time.monotonic() + _VERSIONS_PATIENCE
            while not (row := self._row(self._client.get_job_info(probe))).has_ended:
                if time.monotonic() > deadline:
                    self._client.stop_job(probe)
                    raise ServiceUnavailable(
                        f"submit: the cluster at {self.address} has started no job for "
                        f"{_VERSIONS_PATIENCE:.0f} seconds; is its head overloaded?"
                    )
                time.sleep(0.5)
            said = self._client.get_job_logs(probe)
            self._client.delete_job(probe)
        lines = [line for line in said.splitlines() if line.startswith("{")]
        if row.state != "SUCCEEDED" or not lines:
            why = "; ".join(said.split("\n")[-3:]).strip("; ") or f"exit code {row.exit_code}"
            raise ConfigError(
                f"submit: `{_OURS} version` does not run on the cluster at {self.address} ({why}); "
                "its nodes need an image with this version of ladd-pipeline (infra/README.md)"
            )
        found: dict[str, Any] = json.loads(lines[-1])
        return found

    def submit(self, config: PipelineConfig, luggage: Luggage, words: Sequence[str]) -> str:
        """Start a run with its files; return its id."""
        there = config.model_copy(update={"ray": config.ray.model_copy(update={"address": "auto"})})
        plain = re.sub(r"[^A-Za-z0-9_-]+", "-", config.name).strip("-") or "run"
        started = datetime.now(UTC)
        with _packing(), tempfile.TemporaryDirectory(prefix="ladd-submit-") as scratch:
            _fill(Path(scratch), luggage, config_yaml(there))
            with self._explained(), _packing():  # Ray's client writes a package
                return self._started(
                    entrypoint=luggage.command("", _CONFIG_FILE, words),
                    submission_id=f"{plain}-{started:%y%m%d-%H%M%S}-{secrets.token_hex(2)}",
                    # Ray's supervisor of the job has them too, and ends it by SIGKILL after this.
                    runtime_env={
                        "working_dir": scratch,
                        "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(_UNWINDING)},
                    },
                    metadata={_OURS: config.name},
                )

    def _started(self, **job: Any) -> str:
        """Start a job. The head of a cluster that has just begun refuses for a while."""
        deadline = time.monotonic() + _HEAD_PATIENCE
        while True:
            try:
                started: str = self._client.submit_job(**job)
                return started
            except RuntimeError as error:
                if _NOT_YET not in str(error) or time.monotonic() > deadline:
                    raise
            time.sleep(1)

    def rows(self) -> list[JobRow]:
        """Return the runs that the cluster remembers, the oldest first."""
        with self._explained():
            jobs = [job for job in self._client.list_jobs() if _OURS in (job.metadata or {})]
        return [self._row(job) for job in sorted(jobs, key=lambda job: job.start_time or 0)]

    def row(self, job: str) -> JobRow:
        """Return a run by its id, or `latest`. Raises ArtifactError for none."""
        rows = self.rows()
        found = rows[-1:] if job == "latest" else [row for row in rows if row.id == job]
        if not found:
            raise ArtifactError(
                f"submit: the cluster at {self.address} knows no run {job!r}; `ladd-pipeline "
                "submit --list` lists them"
            )
        return found[0]

    def log(self, job: str) -> str:
        """Return all that a run has said."""
        with self._explained():
            said: str = self._client.get_job_logs(job)
        return said

    def stop(self, job: str) -> None:
        """Stop a run and wait until it has ended. Raises ServiceUnavailable if it does not."""
        with self._explained():
            self._client.stop_job(job)
        deadline = time.monotonic() + _STOP_PATIENCE
        while not self.row(job).has_ended:
            if time.monotonic() > deadline:
                raise ServiceUnavailable(
                    f"submit: {job} has been told to stop and runs on after {_STOP_PATIENCE:.0f} "
                    "seconds; `ladd-pipeline submit --list` shows whether it has ended since"
                )
            time.sleep(0.5)

    def follow(self, job: str, show: Callable[[str], None]) -> JobRow:
        """Show all that a run says until it ends. A lost connection is made again."""
        shown = 0

        async def tail() -> None:
            nonlocal shown
            seen = 0
            async for part in self._client.tail_job_logs(job):
                seen += len(part)
                if seen > shown:  # what came before a lost connection comes once more
                    show(part[len(part) - (seen - shown) :])
                    shown = seen

        for attempt in range(_RECONNECTS):
            try:
                with self._explained():
                    asyncio.run(tail())
                row = self.row(job)
                if row.has_ended:
                    return row
            except (ServiceUnavailable, ConfigError):
                if attempt == _RECONNECTS - 1:
                    raise
            time.sleep(min(1.0 + attempt, 10.0))
        return self.row(job)

    def _row(self, job: Any) -> JobRow:
        started = datetime.fromtimestamp(job.start_time / 1000, UTC) if job.start_time else None
        ended = job.end_time / 1000 if job.end_time else time.time()
        return JobRow(
            id=job.submission_id,
            name=(job.metadata or {}).get(_OURS, ""),
            state=str(getattr(job.status, "value", job.status)),
            started=started,
            seconds=max(0.0, ended - started.timestamp()) if started else 0.0,
            exit_code=job.driver_exit_code,
            command=job.entrypoint,
        )

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """Turn the failures of Ray's client, which raises bare errors, into one sentence."""
        import aiohttp
        import requests
        from ray.exceptions import AuthenticationError

        try:
            yield
        except LaddError:
            raise
        except (ConnectionError, requests.ConnectionError, aiohttp.ClientError, OSError) as error:
            raise ServiceUnavailable(
                f"submit: no job server of Ray answers at {self.address} ({sentence(error)}); is "
                "the cluster up, and its port 8265 forwarded to here?"
            ) from error
        except AuthenticationError as error:
            raise ConfigError(
                f"submit: the cluster at {self.address} wants its token; set RAY_AUTH_TOKEN "
                "(infra/README.md says where it is)"
            ) from error
        except RuntimeError as error:
            text = sentence(error)
            if "ray[default]" in text:
                raise ConfigError(
                    "submit: Ray's job client is not installed; pip install "
                    "'ladd-pipeline[cluster]'"
                ) from error
            raise ConfigError(f"submit: {self.address} refused: {text}") from error


@contextlib.contextmanager
def _packing() -> Iterator[None]:
    """Turn the failures of this machine's files and disk into one sentence."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise  # of a connection
        raise ConfigError(
            f"submit: the run's files cannot be packed in {tempfile.gettempdir()} "
            f"({sentence(error)}); another TMPDIR gives room elsewhere"
        ) from error


def _fill(root: Path, luggage: Luggage, config: str) -> None:
    """Copy the files of a run, and write its configuration among them."""
    for name, path in luggage.files.items():
        copy = root / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)
    folder = root / luggage.folder
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _CONFIG_FILE).write_text(config)


@contextlib.contextmanager
def _address_of_ray(address: str) -> Iterator[None]:
    """Make Ray's client heed the address that it is given: it prefers its own variables."""
    before = os.environ.get(_VARIABLE)
    os.environ[_VARIABLE] = address
    try:
        yield
    finally:
        del os.environ[_VARIABLE]
        if before is not None:
            os.environ[_VARIABLE] = before


def require_same_versions(here: Mapping[str, Any], there: Mapping[str, Any]) -> str:
    """Raise ConfigError for other versions on the cluster than here; return a warning about what
    may differ in spite of that, or an empty text.
    """
    ours = {"Python": ".".join(here["python"].split(".")[:2])}
    theirs = {"Python": ".".join(there["python"].split(".")[:2])}
    for name in ("ray", _OURS):
        ours[name], theirs[name] = (side["packages"].get(name, "none") for side in (here, there))
    differing = [
        f"{name} {theirs[name]} in place of {ours[name]}"
        for name in ours
        if theirs[name] != ours[name]
    ]
    if differing:
        raise ConfigError(
            f"submit: the cluster has {', '.join(differing)}; install the same versions on both "
            "sides (an image of this version, or this version here)"
        )
    own, other = here.get("git_commit"), there.get("git_commit")
    if own and other and own != other:
        return f"the cluster has commit {other[:12]}, this machine {own[:12]}"
    return ""
