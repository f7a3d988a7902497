"""What unit tests share: a machine with room, and a command that must refuse, in one sentence."""

from __future__ import annotations

import re
import sys
from types import SimpleNamespace

import pytest
import yaml

from pipeline import cli
from tests.support.command import stop_ray
from tests.support.tiny_sd3 import make_tiny_config
from tests.support.without_ray import without_ray


@pytest.fixture(autouse=True, scope="session")
def no_ray():
    """The Ray that earlier tests have started is not needed here."""
    stop_ray()


@pytest.fixture(autouse=True)
def roomy_machine(monkeypatch):
    """Let no test depend on the disk and the memory that this machine happens to have."""
    room = SimpleNamespace(total=1 << 50, used=0, free=1 << 50)
    monkeypatch.setattr("shutil.disk_usage", lambda path: room)
    monkeypatch.setattr("pipeline.preflight.machine_memory", lambda: 1 << 45)


@pytest.fixture
def refused(tiny_sd3, tmp_path, monkeypatch, capsys):
    """Call the command in this process, without Ray, and expect it to refuse; gives the exit code
    and the sentence, or a sentence in a line for each of several reasons.
    """
    without_ray(monkeypatch)

    def call(*arguments, **sections):
        config = make_tiny_config(tiny_sd3, tmp_path / "store").model_dump(mode="json")
        for name, values in sections.items():
            config[name] = {**config[name], **values} if isinstance(values, dict) else values
        path = tmp_path / "pipeline.yaml"
        path.write_text(yaml.safe_dump(config))
        command, *rest = arguments or ("run",)
        monkeypatch.setattr(
            sys, "argv", ["ladd-pipeline", command, "-c", str(path), *map(str, rest)]
        )
        with pytest.raises(SystemExit) as stop:
            cli.main()
        output = capsys.readouterr()
        errors = [line for line in output.err.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1, output.err
        assert "Traceback" not in output.err
        assert not list((tmp_path / "store").glob("artifacts/*/*/manifest.json"))
        reasons = [line for line in output.err.splitlines() if re.match(r"  \d+\. ", line)]
        return stop.value.code, "\n".join(reasons) or errors[0]

    return call
