"""An example report and its page."""

from __future__ import annotations

import pytest

from schemas.report import Report
from stages.report.page import render_report
from tests.support.example_report import example_pictures, example_report
from tests.support.report_page import Page


@pytest.fixture(scope="module")
def report() -> Report:
    return example_report()


@pytest.fixture(scope="module")
def page(report) -> Page:
    return Page(render_report(report, example_pictures(report)))
