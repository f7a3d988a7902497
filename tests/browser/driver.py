"""A real headless Chromium that reaches this machine only."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service

FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE localhost, EXCLUDE 127.0.0.1",
)


@pytest.fixture(scope="session")
def start_browser(tmp_path_factory) -> Iterator[Callable[[], webdriver.Chrome]]:
    """Starts one more Chromium with a profile of its own: another person at another machine."""
    found = {name: shutil.which(name) for name in ("chromium", "chromedriver")}
    for name, path in found.items():
        if path is None:
            pytest.fail(
                f"{name} is missing, and pages are tested in a real browser: "
                "`apt-get install chromium chromium-driver` installs it",
                pytrace=False,
            )
    started: list[webdriver.Chrome] = []

    def start() -> webdriver.Chrome:
        options = Options()
        options.binary_location = found["chromium"]
        profile: Path = tmp_path_factory.mktemp("chromium-profile")
        for flag in (*FLAGS, f"--user-data-dir={profile}"):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        # With the driver's path said, selenium does not look for one on the network.
        started.append(webdriver.Chrome(options, Service(found["chromedriver"])))
        return started[-1]

    yield start
    for driver in started:
        driver.quit()


@pytest.fixture(scope="session")
def one_browser(start_browser) -> webdriver.Chrome:
    return start_browser()


@pytest.fixture
def browser(one_browser) -> webdriver.Chrome:
    """The session's Chromium on an empty page, without what the test before left."""
    driver = one_browser
    driver.get("about:blank")
    driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "", "features": []})
    driver.get_log("browser")
    return driver
