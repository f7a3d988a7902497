"""Every exception of a command is one sentence on standard error; its traceback is kept."""

from __future__ import annotations

import errno
import sys
from pathlib import Path

import pytest

from pipeline import cli
from pipeline.commands import boundary, opening
from schemas.errors import ArtifactError, ConfigError, StageFailed


@pytest.fixture
def failing(monkeypatch, capsys, tmp_path):
    """Run `config show` whose work raises an error; return exit code and standard error."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    for prepare in ("settle_home", "settle_threads"):
        monkeypatch.setattr(cli, prepare, lambda: None)
    monkeypatch.delenv("LADD_DEBUG", raising=False)

    def run(error: Exception, *arguments: str) -> tuple[int, str]:
        def fail(*_: object) -> None:
            raise error

        monkeypatch.setattr(opening, "open_config", fail)
        monkeypatch.setattr(sys, "argv", ["ladd-pipeline", *arguments, "config", "show"])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        return int(stop.value.code or 0), capsys.readouterr().err

    return run


def test_what_nobody_foresaw_is_one_sentence_and_its_traceback_is_kept(failing, tmp_path):
    code, text = failing(ZeroDivisionError("division by zero"))
    assert code == 1 and "Traceback" not in text
    first, second = text.splitlines()
    assert first == "error: ZeroDivisionError: division by zero"
    (kept,) = tmp_path.glob("ladd-error-*.txt")
    assert str(kept) in second and "--debug" in second
    assert "Traceback" in kept.read_text() and "in fail" in kept.read_text()


def test_an_error_of_the_system_names_the_file_and_the_mend(failing):
    code, text = failing(OSError(errno.ENOSPC, "No space left on device", "/data/shard.tar"))
    assert code == 1
    assert text.startswith("error: /data/shard.tar: there is no space left; free some")


@pytest.mark.parametrize("kind", [ConfigError, ArtifactError, StageFailed])
def test_an_error_for_the_user_stays_as_it_is(kind, failing, tmp_path):
    assert failing(kind("seven words")) == (kind.exit_code, "error: seven words\n")
    assert not list(tmp_path.glob("ladd-error-*"))


@pytest.mark.parametrize("error", [ConfigError("seven words"), ZeroDivisionError("zero")])
def test_debug_prints_the_traceback(error, failing, tmp_path, monkeypatch):
    _, text = failing(error, "--debug")
    assert text.startswith("Traceback") and "error: " in text.splitlines()[-1]
    monkeypatch.setenv("LADD_DEBUG", "1")
    assert failing(error)[1].startswith("Traceback")
    monkeypatch.setenv("LADD_DEBUG", "0")
    assert not failing(ConfigError("seven words"))[1].startswith("Traceback")


def test_without_a_temporary_folder_the_sentence_comes_all_the_same(failing, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", "/proc/none")
    code, text = failing(ZeroDivisionError("zero"))
    assert code == 1 and text.startswith("error: ZeroDivisionError: zero\n")


def test_debug_may_stand_behind_the_command():
    first = boundary.debug_first
    assert first(["run", "--debug", "-c", "x"]) == ["--debug", "run", "-c", "x"]
    assert first(["sample", "--", "--debug"]) == ["sample", "--", "--debug"]
    assert first(["run", "-c", "x"]) == ["run", "-c", "x"]


def test_a_closed_pipe_stays_silent(failing, tmp_path):
    """`ladd-pipeline plan | head -1`"""
    assert failing(BrokenPipeError(errno.EPIPE, "Broken pipe")) == (1, "")
    assert not list(tmp_path.glob("ladd-error-*"))


def test_a_wrong_configuration_is_not_resumed(tmp_path, monkeypatch, capsys):
    """Bug: print the command that resumes; it would fail again."""
    arguments = ["run", "--preset", "shapes-smoke", "--set", f"store={tmp_path}/store"]
    for error, resumes in ((ConfigError("wrong"), False), (StageFailed("lost"), True)):

        def fail(*_: object, error: Exception = error, **__: object) -> None:
            raise error

        monkeypatch.setattr("pipeline.executor.execute", fail)
        monkeypatch.setattr(sys, "argv", ["ladd-pipeline", *arguments])
        with pytest.raises(SystemExit):
            cli.main()
        assert ("to resume: ladd-pipeline run" in capsys.readouterr().err) == resumes
    assert not Path(tmp_path, "store", "artifacts").exists()
