"""Fixtures: a complete tiny SD3 pipeline with random weights, ready-made configurations, a finished
run, an S3 server, and a browser.
"""

from __future__ import annotations

import os
import secrets
import signal
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
# Ray gives way to all else on the machine; beside another test process its workers would starve.
os.environ.setdefault("RAY_worker_niceness", "0")
# Ray reads this when it is first imported, which may be long before a test starts it.
os.environ.setdefault("RAY_AUTH_MODE", "token")
os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # started by nohup: so would what tests start
    signal.signal(signal.SIGINT, signal.default_int_handler)

import hypothesis
import pytest
import torch
from filelock import FileLock

from schemas.config import PipelineConfig, TeacherConfig
from tests.support.command import call
from tests.support.s3_servers import make_bucket, speak_to
from tests.support.tiny_sd3 import build_pipeline, make_tiny_config, tiny_transformer

if "PYTEST_XDIST_WORKER" not in os.environ:
    torch.set_num_threads(2)
# An example takes longer than 200 ms where something else runs on the machine.
hypothesis.settings.register_profile("unhurried", deadline=None)
hypothesis.settings.load_profile("unhurried")


COVERED = ("schemas", "stages/ladd", "stages/training", "stages/test_distill.py")
"""What in `tests/unit` runs the lines of coverage's sources."""


FIRST = "test_lives.py"
"""A long test that does not need the `smoke_store`: it runs while another process makes that."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Measure the coverage of some tests only: it adds half to the time of a test. And let no
    process wait for a store that another makes.
    """
    unit = Path(__file__).parent / "unit"
    for item in items:
        if not any(item.path.is_relative_to(unit / name) for name in COVERED):
            item.add_marker("no_cover")
    items.sort(key=lambda item: item.path.name != FIRST)


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory):
    """What tests remember of files is not this user's."""
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def tiny_sd3(tmp_path_factory) -> Path:
    """An SD3 folder without T5."""
    return build_pipeline(tmp_path_factory.mktemp("tiny-sd3"), t5=False)


@pytest.fixture(scope="session")
def tiny_sd35_t5(tmp_path_factory) -> Path:
    """An SD3.5 folder (dual attention, QK norm) with all three text encoders."""
    return build_pipeline(tmp_path_factory.mktemp("tiny-sd35"), t5=True, dual=(0, 1))


@pytest.fixture
def tiny_teacher(tiny_sd3):
    from stages.teachers import open_teacher

    return open_teacher(TeacherConfig(model=str(tiny_sd3), dtype="float32", use_t5=False))


@pytest.fixture
def tiny_config(tiny_sd3, tmp_path) -> PipelineConfig:
    """The whole graph on the tiny teacher, with a store in a temporary folder."""
    return make_tiny_config(tiny_sd3, tmp_path / "store")


@pytest.fixture(scope="module")
def endpoint():
    """An S3 server on loopback that starts at once. `tests/storage` has a real one."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(endpoint, monkeypatch):
    """The URL of an empty store there; the credentials are in the environment."""
    import s3fs

    speak_to(monkeypatch, endpoint)
    yield f"s3://{make_bucket()}/prefix"
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture(scope="session")
def smoke_store(tmp_path_factory) -> Path:
    """The store of a whole run of `shapes-smoke`, named by a relative path; made once for all test
    processes, so copy it before you change it.

    Ray Train moves its workers to a folder of their own: a relative store must reach them.
    """
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "smoke"
    finished = folder / "finished"
    with FileLock(f"{folder}.lock"):
        if not finished.exists():
            folder.mkdir()
            result = call("run", "--preset", "shapes-smoke", "--set", "store=store", cwd=folder)
            assert result.returncode == 0, result.stderr
            assert "report.html" in result.stdout
            finished.touch()
    return folder / "store"


@pytest.fixture
def tiny_backbones():
    """Student and frozen teacher with different weights, float32, 3 blocks of width 16."""
    from stages.teachers.sd3_backbone import SD3Backbone

    teacher = SD3Backbone(tiny_transformer()).requires_grad_(False)
    student = SD3Backbone(tiny_transformer())
    with torch.no_grad():
        generator = torch.Generator().manual_seed(1)
        for parameter in student.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return student, teacher


@pytest.fixture
def tiny_batch():
    """Latents of a bucket that is not square, and their conditioning."""
    from stages.ladd.backbone import Conditioning

    generator = torch.Generator().manual_seed(2)
    latents = torch.randn(4, 4, 8, 12, generator=generator)
    tokens = torch.randn(4, 5, 24, generator=generator)
    return latents, Conditioning(tokens, torch.randn(4, 24, generator=generator), null_tokens=7)


@pytest.fixture(scope="session")
def start_browser(tmp_path_factory):
    """Starts one more Chromium with a profile of its own: another person at another machine."""
    from tests.support.browser import open_chromium

    started = []

    def start():
        started.append(open_chromium(tmp_path_factory.mktemp("chromium-profile")))
        return started[-1]

    yield start
    for driver in started:
        driver.quit()


@pytest.fixture(scope="session")
def one_browser(start_browser):
    return start_browser()


@pytest.fixture
def browser(one_browser):
    """The session's Chromium on an empty page, without what the test before left."""
    driver = one_browser
    driver.get("about:blank")
    driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "", "features": []})
    driver.get_log("browser")
    return driver
