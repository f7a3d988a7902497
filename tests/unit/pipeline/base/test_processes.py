"""Whether a process is still there, told without a clock."""

from __future__ import annotations

import os
import subprocess
import sys

import psutil
import pytest

from pipeline.base import processes
from pipeline.base.processes import birth, has_ended, here


@pytest.fixture
def child():
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        yield process
        process.kill()


def test_a_running_process_has_not_ended(child):
    assert not has_ended(child.pid, birth(child.pid))
    assert not has_ended(os.getpid(), birth(os.getpid()))


def test_a_process_that_its_parent_has_not_collected_has_ended(child):
    """Bug: a lease waits for the parent, which may never look."""
    born = birth(child.pid)
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert psutil.pid_exists(child.pid) and has_ended(child.pid, born)


def test_another_process_of_the_same_number_is_another(child):
    assert has_ended(child.pid, birth(child.pid) - 1)


@pytest.mark.parametrize("number", [-1, 0, 2**31, 10**30])
def test_numbers_that_are_none_of_processes_have_ended(number):
    assert has_ended(number, 1.0)


def test_a_birth_does_not_move_with_the_clock(monkeypatch):
    before = birth(os.getpid())
    monkeypatch.setattr(psutil.Process, "create_time", lambda self: 1.0)
    assert birth(os.getpid()) == before


def test_without_proc_the_system_is_asked_in_another_way(child, monkeypatch):
    def missing(process):
        raise FileNotFoundError(process)

    monkeypatch.setattr(processes, "_fields", missing)
    assert birth(child.pid) == psutil.Process(child.pid).create_time()
    assert not has_ended(child.pid, birth(child.pid))


def test_where_a_birth_cannot_be_read_nothing_is_said(child, monkeypatch):
    """Bug: take what another user's process hides for its end."""
    monkeypatch.setattr(processes, "birth", lambda process: None)
    assert not has_ended(child.pid, 1.0)


def test_a_place_is_a_boot_and_a_namespace():
    assert here() == here()
    assert all(isinstance(part, str) and part for part in here())
