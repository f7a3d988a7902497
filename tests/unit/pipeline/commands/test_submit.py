"""`submit` against a job server: what goes along, what is named before anything starts, how a run
is followed, left, found again and stopped.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import time

import pytest

from pipeline.config import load_config
from pipeline.stage_task import environment
from tests.support.command import COMMAND, call_here
from tests.support.job_server import FakeJobs, serve

pytestmark = pytest.mark.slow
SIGNED = "https://bucket.example/a.tar?X-Amz-Signature=5ec4e7&X-Amz-Expires=60"


@pytest.fixture
def cluster(tmp_path, monkeypatch) -> FakeJobs:
    """A cluster with the same versions, and a working folder with prompts."""
    fake = FakeJobs(environment().model_dump())
    serve(fake)
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", fake.address)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    (tmp_path / "prompts.txt").write_text("a red circle\n" * 9)
    (tmp_path / "pipeline.yaml").write_text(
        "preset: shapes-smoke\nname: my run\nstore: s3://bucket/prefix\n"
        "prompts: {sources: [{kind: file, url: prompts.txt}]}\n"
    )
    return fake


def error(result) -> str:
    (line,) = [text for text in result.stderr.splitlines() if text.startswith("error: ")]
    assert "Traceback" not in result.stderr
    return line.removeprefix("error: ")


def test_a_run_goes_with_its_files_and_is_followed_to_its_end(cluster, tmp_path, monkeypatch):
    monkeypatch.setenv("LADD_DISTILL__LEARNING_RATE", "3e-5")
    words = ("--until", "distill", "--force", "encode", "--set", "ray.address=elsewhere:6379")
    result = call_here("submit", "-c", "pipeline.yaml", *words, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    first, *said = result.stdout.splitlines()
    assert said == ["prompts 1/2", "prompts 2/2"]
    (job,) = cluster.jobs  # the one that asked for versions is forgotten
    assert first == f"submitted  {job}" and job.startswith("my-run-")
    assert cluster.jobs[job]["entrypoint"] == (
        "ladd-pipeline -C . run --config ladd-run.yaml --until distill --force encode "
        "--log-format text"
    )
    files = cluster.files()
    assert set(files) == {"prompts.txt", "ladd-run.yaml"}
    (tmp_path / "there.yaml").write_bytes(files["ladd-run.yaml"])
    monkeypatch.delenv("LADD_DISTILL__LEARNING_RATE")
    there = load_config(tmp_path / "there.yaml", None, (), {})
    assert there.ray.address == "auto" and there.distill.learning_rate == 3e-5
    assert files["prompts.txt"] == (tmp_path / "prompts.txt").read_bytes()


@pytest.mark.parametrize(("state", "code"), [(3, 3), (1, 1), (-9, 1)])
def test_the_exit_code_is_that_of_the_run(cluster, tmp_path, state, code):
    cluster.exit_code = state
    result = call_here("submit", "-c", "pipeline.yaml", cwd=tmp_path)
    assert result.returncode == code and result.stderr.startswith("failed  my-run-")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"python": "3.12.1"}, "the cluster has Python 3.12 in place of 3.11; install the same"),
        ({"packages": {"ray": "2.54.0", "ladd-pipeline": "0.1.0"}}, "ray 2.54.0 in place of 2."),
        ({"packages": {"ladd-pipeline": "0.0.9"}}, "ladd-pipeline 0.0.9 in place of 0.1.0"),
    ],
)
def test_other_versions_are_named_before_anything_starts(cluster, tmp_path, change, said):
    cluster.versions |= change
    result = call_here("submit", "-c", "pipeline.yaml", cwd=tmp_path)
    assert result.returncode == 2 and said in error(result)
    assert not cluster.jobs and not cluster.packages


def test_another_commit_is_a_warning(cluster, tmp_path):
    cluster.versions["git_commit"] = "0" * 40
    result = call_here("submit", "-c", "pipeline.yaml", "--detach", cwd=tmp_path)
    assert result.returncode == 0
    assert ("warning  submit  the cluster has commit 000000000000" in result.stderr) == (
        environment().git_commit is not None
    )


def test_a_cluster_without_our_command_is_named(cluster, tmp_path):
    cluster.versions = {}
    result = call_here("submit", "-c", "pipeline.yaml", cwd=tmp_path)
    assert result.returncode == 2
    assert "does not run on the cluster at http://127" in error(result)
    assert "ladd-pipeline: not found" in error(result)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (("--set", "store=./here"), "store: "),
        (("--set", "teacher={family: sd3, model: /models/sd3}"), ""),
        (("--set", "prompts.sources=[{kind: file, url: /data/p.txt}]"), "/data/p.txt is a path of"),
        (("--set", f"encode.external=['{SIGNED}']"), "would lie in the package that Ray keeps"),
        (("--attach", "latest", "--list"), "--attach and --list do different things"),
        (("--attach", "other"), "knows no run 'other'"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_starts(cluster, tmp_path, settings, said):
    if "model" in settings[-1]:
        (tmp_path / "sd3").mkdir()
        model = tmp_path / "sd3"
        settings = ("--set", f"teacher={{family: sd3, model: {model}}}")
        said = f"teacher.model: {model} is a path of this machine"
    result = call_here("submit", "-c", "pipeline.yaml", *settings, cwd=tmp_path)
    assert result.returncode in (2, 4) and said in error(result)
    assert not cluster.jobs and "5ec4e7" not in error(result)


def test_a_token_and_a_dead_cluster_are_named(cluster, tmp_path, monkeypatch):
    cluster.token = "secret"
    result = call_here("submit", "--list")
    assert result.returncode == 2 and "wants its token; set RAY_AUTH_TOKEN" in error(result)
    result = call_here("submit", "--list", "--address", "http://127.0.0.1:9")
    assert result.returncode == 4
    assert error(result).startswith("submit: no job server of Ray answers at http://127.0.0.1:9")


def test_a_lost_connection_is_made_again_and_nothing_is_said_twice(cluster, tmp_path):
    cluster.drops, cluster.refusals = 2, 1  # and the head has just started
    result = call_here("submit", "-c", "pipeline.yaml", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[1:] == ["prompts 1/2", "prompts 2/2"]


def test_runs_are_listed_read_and_stopped(cluster, tmp_path):
    assert "no runs on http" in call_here("submit", "--list").stdout
    cluster.exit_code = None
    detached = call_here("submit", "-c", "pipeline.yaml", "--detach", cwd=tmp_path)
    assert detached.returncode == 0, detached.stderr
    (job,) = cluster.jobs
    assert f"submit --address {cluster.address} --attach {job}" in detached.stdout
    cluster.jobs["foreign"] = {**cluster.jobs[job], "submission_id": "foreign", "metadata": {}}
    (row,) = json.loads(call_here("submit", "--list", "--json").stdout)
    assert (row["id"], row["name"], row["state"]) == (job, "my run", "running")
    assert job in call_here("submit", "--list").stdout
    assert call_here("submit", "--logs", "latest").stdout == "prompts 1/2\nprompts 2/2\n"
    stopped = call_here("submit", "--stop", job)
    assert stopped.returncode == 0 and cluster.stopped == [job]


def test_a_stopped_run_has_time_to_unwind_and_is_not_waited_for_without_end(
    cluster, tmp_path, monkeypatch
):
    """Bug: leave the run Ray's 3 seconds, and poll a run that does not end for ever."""
    cluster.exit_code, cluster.ignores_stop = None, True
    assert call_here("submit", "-c", "pipeline.yaml", "--detach", cwd=tmp_path).returncode == 0
    assert cluster.variables == {"RAY_JOB_STOP_WAIT_TIME_S": "60"}
    monkeypatch.setattr("pipeline.jobs._STOP_PATIENCE", 0.0)
    result = call_here("submit", "--stop", "latest")
    assert result.returncode == 4 and "has been told to stop and runs on" in error(result)


@pytest.mark.parametrize("failing", ["shutil.copyfile", "zipfile.ZipFile.write"])
def test_a_full_disk_is_not_a_dead_cluster(cluster, tmp_path, monkeypatch, failing):
    def full(*_args, **_kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(failing, full)
    result = call_here("submit", "-c", "pipeline.yaml", cwd=tmp_path)
    assert result.returncode == 2
    assert error(result).startswith("submit: the run's files cannot be packed in /")
    assert "no space left" in error(result)


@pytest.mark.parametrize(
    ("number", "answer", "code"),
    [(signal.SIGINT, "s\n", 130), (signal.SIGINT, "l\n", 130), (signal.SIGTERM, None, 143)],
)
def test_ctrl_c_asks_what_is_to_become_of_the_run(cluster, tmp_path, number, answer, code):
    """On a terminal it is asked; elsewhere the run goes on."""
    cluster.exit_code = None
    ours, theirs = os.openpty()
    with subprocess.Popen(
        [*COMMAND, "submit", "-c", tmp_path / "pipeline.yaml"],
        cwd=tmp_path,
        stdin=theirs if answer else subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        os.close(theirs)
        assert process.stdout is not None
        for line in process.stdout:
            if "prompts 2/2" in line:
                break
        process.send_signal(number)
        if answer:
            time.sleep(0.5)
            os.write(ours, answer.encode())
        _, errors = process.communicate(timeout=60)
    os.close(ours)
    assert process.returncode == code, errors
    (job,) = cluster.jobs
    assert cluster.stopped == ([job] if answer == "s\n" else [])
    assert ("left running; to follow it: ladd-pipeline submit" in errors) == (answer != "s\n")
    assert "Traceback" not in errors
