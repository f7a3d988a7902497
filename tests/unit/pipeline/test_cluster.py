"""How Ray is started on a machine, and what becomes of its errors; without a Ray."""

from __future__ import annotations

import os
from types import SimpleNamespace

import psutil
import pytest

from pipeline import cluster, machine
from schemas.errors import ProcessLost, StageFailed

SLOW = Exception("The current node timed out during startup. This could happen because some of\n")


@pytest.fixture
def started(monkeypatch, tmp_path):
    """Stands in for `ray.init`: raises the errors one after another, and lists its options."""
    calls: list[dict] = []
    errors: list[Exception] = []

    def init(**options) -> None:
        calls.append(options | {"cwd": os.getcwd()})
        if errors:
            raise errors.pop(0)

    monkeypatch.setattr("ray.init", init)
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr("ray.shutdown", lambda: None)
    monkeypatch.setattr(cluster, "_quiet_ray_data", lambda: None)
    monkeypatch.setenv("HOME", str(tmp_path))
    return SimpleNamespace(calls=calls, errors=errors, warned=[])


def start(config, started) -> None:
    with cluster.ray_cluster(config, started.warned.append):
        pass


def with_ray(config, **changes):
    return config.model_copy(update={"ray": config.ray.model_copy(update=changes)})


def test_a_slow_start_is_tried_twice(config, started):
    """Bug: let the bare Exception of Ray through, on a machine that was busy for half a minute."""
    started.errors[:] = [SLOW]
    start(config, started)
    assert len(started.calls) == 2
    (said,) = started.warned
    assert "timed out during startup" in said and said.endswith("; trying once more")


def test_a_start_that_fails_twice_is_one_sentence(config, started):
    started.errors[:] = [SLOW, SLOW]
    with pytest.raises(
        StageFailed, match=r"Ray did not start on this machine .*timed out"
    ) as error:
        start(config, started)
    assert "\n" not in str(error.value) and len(started.calls) == 2


@pytest.mark.parametrize(
    "error", [ConnectionError("no answer"), ValueError("bad address"), SLOW, OSError(13, "denied")]
)
def test_a_cluster_that_cannot_be_joined_is_named_and_not_waited_for(error, config, started):
    started.errors[:] = [error]
    with pytest.raises(StageFailed, match=r"ray\.address: cannot join the Ray cluster"):
        start(with_ray(config, address="10.0.0.1:6379"), started)
    assert len(started.calls) == 1


def test_a_local_ray_takes_what_the_process_may_use(config, started, monkeypatch):
    monkeypatch.setattr(machine, "usable_cpus", lambda: 3)
    monkeypatch.setattr(machine, "memory_limit", lambda: 1 << 30)
    start(config, started)
    start(with_ray(config, num_cpus=7), started)
    assert [call["num_cpus"] for call in started.calls] == [3, 7]
    assert {call["object_store_memory"] for call in started.calls} <= {256 << 20, 80 << 20}


def test_workers_get_our_packages_and_not_the_users_folder(config, started, monkeypatch, tmp_path):
    """Bug: call `ray.init` in the user's folder, which it puts first on the path of its workers."""
    monkeypatch.chdir(tmp_path)
    start(config, started)
    start(with_ray(config, address="auto"), started)
    start(with_ray(config, address="ray://head:10001"), started)
    local, joined, client = started.calls
    assert local["cwd"] == joined["cwd"] == "/" and os.getcwd() == str(tmp_path)
    assert callable(local["runtime_env"]["worker_process_setup_hook"])
    assert callable(joined["runtime_env"]["worker_process_setup_hook"])
    assert "runtime_env" not in client  # Ray's client sends no function, and no folder either


def test_what_the_machine_lacks_is_said_and_the_folder_removed(config, started, monkeypatch):
    monkeypatch.setenv("TMPDIR", "/tmp/" + "a" * 90)
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setattr(machine, "free_shared_memory", lambda: 64 << 20)
    start(config, started)
    folder = started.calls[0]["_temp_dir"]
    assert len(folder) < 40 and not os.path.exists(folder)
    long, narrow = started.warned
    assert long.startswith("TMPDIR: ") and narrow.startswith("/dev/shm has 64 MB")


def test_a_ray_whose_own_processes_ended_is_noticed(monkeypatch):
    """Ray waits for ever without its raylet, and ends the command a minute after its GCS."""
    child = psutil.Popen(["sleep", "60"])
    monkeypatch.setattr(cluster, "_helpers", [psutil.Process(child.pid)])
    cluster.require_ray()
    child.kill()
    while psutil.Process(child.pid).status() != psutil.STATUS_ZOMBIE:
        pass
    with pytest.raises(ProcessLost, match="a process of Ray"):
        cluster.require_ray()  # a zombie, for nobody waits for it
    child.wait()
    with pytest.raises(ProcessLost):
        cluster.require_ray()


def test_a_local_ray_is_for_this_machine_and_a_joined_one_is_not(tiny_config, started, monkeypatch):
    """Bug: leave the switch on for the next cluster, which then cannot be joined."""
    from ray._private import ray_constants, services

    switch = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
    for name in ("RAY_AUTH_MODE", switch):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(ray_constants, "ENABLE_RAY_CLUSTER", True)
    with cluster.ray_cluster(tiny_config, started.warned.append):
        assert os.environ["RAY_AUTH_MODE"] == "token" and os.environ[switch] == "0"
        assert not ray_constants.ENABLE_RAY_CLUSTER
        assert services.get_node_ip_address() == "127.0.0.1"
    assert ray_constants.ENABLE_RAY_CLUSTER and switch not in os.environ
    with cluster.ray_cluster(with_ray(tiny_config, address="auto"), started.warned.append):
        assert ray_constants.ENABLE_RAY_CLUSTER and switch not in os.environ


def test_the_choice_of_a_user_who_lets_ray_listen_elsewhere_stays(
    tiny_config, started, monkeypatch
):
    from ray._private import ray_constants

    monkeypatch.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "1")
    monkeypatch.setattr(ray_constants, "ENABLE_RAY_CLUSTER", True)
    with cluster.ray_cluster(tiny_config, started.warned.append):
        assert ray_constants.ENABLE_RAY_CLUSTER
    assert os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] == "1"
