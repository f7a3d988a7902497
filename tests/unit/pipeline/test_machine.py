"""What a machine gives a process, on machines that this one is not: their files are made up."""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path

import pytest

import ladd_pipeline
from pipeline import machine
from schemas.errors import ConfigError

V2, V1 = "0::/job/step\n", "5:cpu,cpuacct:/docker/ab\n3:memory:/docker/ab\n"


@pytest.fixture
def root(tmp_path):
    """Makes the files of a machine."""

    def make(**files: str) -> Path:
        for name, text in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return tmp_path

    return make


@pytest.fixture
def eight_cpus(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)))


CPUS = {
    "no cgroup": ({}, 8),
    "no limit": ({"proc/self/cgroup": V2, "sys/fs/cgroup/job/step/cpu.max": "max 100000"}, 8),
    "v2": ({"proc/self/cgroup": V2, "sys/fs/cgroup/job/step/cpu.max": "250000 100000"}, 2),
    "v2, around": ({"proc/self/cgroup": V2, "sys/fs/cgroup/job/cpu.max": "300000 100000"}, 3),
    "v2, a container": ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "50000 100000"}, 1),
    "more than there are": ({"proc/self/cgroup": V2, "sys/fs/cgroup/job/cpu.max": "9900 100"}, 8),
    "v1": (
        {
            "proc/self/cgroup": V1,
            "sys/fs/cgroup/cpu/docker/ab/cpu.cfs_quota_us": "400000",
            "sys/fs/cgroup/cpu/docker/ab/cpu.cfs_period_us": "100000",
        },
        4,
    ),
    "v1, a container": (
        {
            "proc/self/cgroup": V1,
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "999",  # of no controller's name
            "sys/fs/cgroup/cpuacct/cpu.cfs_quota_us": "200000",
            "sys/fs/cgroup/cpuacct/cpu.cfs_period_us": "100000",
        },
        2,
    ),
    "v1, no limit": (
        {
            "proc/self/cgroup": V1,
            "sys/fs/cgroup/cpu/docker/ab/cpu.cfs_quota_us": "-1",
            "sys/fs/cgroup/cpu/docker/ab/cpu.cfs_period_us": "100000",
        },
        8,
    ),
}


@pytest.mark.parametrize("case", CPUS)
def test_cpus_are_those_that_the_process_may_use(case, root, eight_cpus):
    """Bug: count with `os.cpu_count()`, which is 64 in a container of two."""
    files, cpus = CPUS[case]
    assert machine.usable_cpus(root(**files)) == cpus


def test_affinity_counts_without_a_cgroup(monkeypatch, tmp_path):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {3})
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    assert machine.usable_cpus(tmp_path) == 1


def test_where_there_is_no_affinity_all_cpus_count(monkeypatch, tmp_path):
    """macOS has no os.sched_getaffinity."""
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert machine.usable_cpus(tmp_path) == 6
    machine.settle_threads({})


def test_windows_is_refused_in_one_sentence(monkeypatch, capsys):
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(SystemExit, match="2"):
        ladd_pipeline.main()
    assert capsys.readouterr().err.startswith("error: ladd-pipeline runs on Linux and macOS")


def test_a_quota_limits_the_threads_of_libraries(monkeypatch, eight_cpus):
    for cpus, chosen, threads in ((2, {}, "2"), (8, {}, None), (2, {"OMP_NUM_THREADS": "1"}, "1")):
        monkeypatch.setattr(machine, "usable_cpus", lambda cpus=cpus: cpus)
        machine.settle_threads(chosen)
        assert chosen.get("OMP_NUM_THREADS") == threads


@pytest.mark.parametrize(
    ("files", "limit"),
    [
        ({}, None),
        ({"proc/self/cgroup": V2, "sys/fs/cgroup/job/memory.max": "max"}, None),
        ({"proc/self/cgroup": V2, "sys/fs/cgroup/job/memory.max": "1073741824"}, 1 << 30),
        (
            {
                "proc/self/cgroup": V1,
                "sys/fs/cgroup/memory/docker/ab/memory.limit_in_bytes": "9223372036854771712",
                "sys/fs/cgroup/memory/memory.limit_in_bytes": "2147483648",
            },
            1 << 31,
        ),
    ],
)
def test_memory_is_what_the_cgroup_allows(files, limit, root):
    assert machine.memory_limit(root(**files)) == limit


MB = 1 << 20


@pytest.mark.parametrize(
    ("free", "limit", "memory", "said"),
    [
        (24 << 30, None, 512 * MB, ""),
        (24 << 30, 1 << 30, 256 * MB, ""),
        (200 * MB, None, 180 * MB, ""),
        (64 * MB, None, 80 * MB, "/dev/shm has 64 MB left"),  # what Docker gives
        (0, 100 * MB, 80 * MB, "/dev/shm has 0 MB left"),
    ],
)
def test_the_object_store_fits_into_shared_memory_or_it_is_said(free, limit, memory, said):
    """Bug: ask for 512 MB always; Ray then moves it to the disk in silence."""
    found, text = machine.object_store_memory(free, limit, "/scratch/ray")
    assert found == memory and text.startswith(said) and bool(text) == bool(said)
    assert not said or "/scratch/ray" in text


def test_ray_stays_where_the_sockets_fit(tmp_path):
    assert machine.ray_folder({}) == ("/tmp/ray", "")
    assert machine.ray_folder({"TMPDIR": "/tmp/mine"}) == ("/tmp/mine/ray", "")
    assert machine.ray_folder({"TMPDIR": "/none", "RAY_TMPDIR": "/tmp"}) == ("/tmp/ray", "")


def test_a_long_temporary_folder_is_left_to_others():
    """Bug: leave it to Ray, whose sockets have paths of 107 bytes at most. Letters may be two."""
    for name in ("a" * 60, "é" * 30):
        folder, said = machine.ray_folder({"TMPDIR": f"/tmp/{name}"})
        assert folder.startswith("/tmp/ladd-ray-") and os.path.isdir(folder)
        assert len(folder + machine._SOCKET) <= machine._LONGEST_SOCKET
        assert said.startswith("TMPDIR: ") and "too long" in said and folder in said
        os.rmdir(folder)


def test_without_any_folder_for_ray_its_variable_is_named(monkeypatch):
    monkeypatch.setattr(machine, "can_write", lambda folder: False)
    with pytest.raises(ConfigError, match="set RAY_TMPDIR to a folder"):
        machine.ray_folder({"RAY_TMPDIR": "/proc/none"})


@pytest.fixture
def readonly(monkeypatch):
    """Takes the right to write to some folders away, from root as well."""

    def take(*folders: Path) -> None:
        own = machine.can_write
        monkeypatch.setattr(
            machine,
            "can_write",
            lambda path: own(path) and not any(path.is_relative_to(f) for f in folders),
        )

    return take


def test_a_home_that_can_be_written_stays(tmp_path):
    environment = {"HOME": str(tmp_path)}
    machine.settle_home(environment)
    machine.settle_token(environment)
    assert environment == {"HOME": str(tmp_path)} and not machine.cache_remark(environment)


def test_the_token_of_a_local_ray_is_for_its_user_alone(tmp_path):
    """Bug: leave it to Ray, which lets all users of the machine read it."""
    machine.settle_token({"HOME": str(tmp_path)})
    token = tmp_path / ".ray" / "auth_token"
    assert stat.S_IMODE(token.stat().st_mode) == 0o600 and len(token.read_text()) == 64
    kept = token.read_text()
    machine.settle_token({"HOME": str(tmp_path)})
    assert token.read_text() == kept


def test_a_home_that_cannot_be_written_gets_caches_and_a_token(tmp_path, monkeypatch, readonly):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    home = tmp_path / "home"
    home.mkdir()
    readonly(home)
    environment = {"HOME": str(home)}
    machine.settle_home(environment)
    machine.settle_token(environment)
    cache = Path(environment["XDG_CACHE_HOME"])
    assert cache.parent == tmp_path and stat.S_IMODE(cache.stat().st_mode) == 0o700
    assert len(environment["RAY_AUTH_TOKEN"]) >= 32
    assert "HOME cannot be written" in machine.cache_remark(environment)
    settled = dict(environment)
    machine.settle_home(environment)  # a command in a command
    assert environment == settled


def test_models_in_a_home_that_cannot_be_written_are_still_found(tmp_path, monkeypatch, readonly):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    models = tmp_path / "home/.cache/huggingface"
    models.mkdir(parents=True)
    readonly(tmp_path / "home")
    environment = {"HOME": str(tmp_path / "home")}
    machine.settle_home(environment)
    assert environment["HF_HOME"] == str(models)


@pytest.mark.parametrize("home", [None, "/"])
def test_a_user_id_that_nobody_knows(home, tmp_path, monkeypatch, readonly):
    """OpenShift starts containers under such ids: getpass.getuser() and ~ fail there."""

    def unknown(user: int) -> None:
        raise KeyError(user)

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("pwd.getpwuid", unknown)
    if home == "/":
        readonly(Path("/.cache"), Path("/.ray"))
    environment = {} if home is None else {"HOME": home}
    machine.settle_home(environment)
    machine.settle_token(environment)
    assert environment["USER"] == environment["LOGNAME"] == f"user{os.getuid()}"
    assert os.access(environment.get("XDG_CACHE_HOME", environment["HOME"]), os.W_OK)


def test_a_cache_of_somebody_else_is_not_used(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    mine = machine.own_cache()
    assert machine.own_cache() == mine
    os.rmdir(mine)
    os.symlink(tmp_path, mine)
    assert machine.own_cache() != mine
