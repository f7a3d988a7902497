"""A real headless Chromium that reaches this machine only, and what is looked at in it."""

from __future__ import annotations

import shutil
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
WIDTHS = (390, 820, 1440)
"""Of a telephone, a tablet and a desk."""


def open_chromium(profile: Path) -> webdriver.Chrome:
    """Start Chromium with a profile in this folder. Fails the test where it is not installed."""
    found = {name: shutil.which(name) for name in ("chromium", "chromedriver")}
    for name, path in found.items():
        if path is None:
            pytest.fail(
                f"{name} is missing, and pages are tested in a real browser: "
                "`apt-get install chromium chromium-driver` installs it",
                pytrace=False,
            )
    options = Options()
    options.binary_location = found["chromium"]
    for flag in (*FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    # With the driver's path said, selenium does not look for one on the network.
    return webdriver.Chrome(options, Service(found["chromedriver"]))


def show(browser: webdriver.Chrome, address: str, width: int, theme: str = "light") -> None:
    """Open a page at this width of the window and in this theme."""
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500},
    )
    media = [{"name": "prefers-color-scheme", "value": theme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": media})
    browser.get(address)
