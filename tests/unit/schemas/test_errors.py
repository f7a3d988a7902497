"""An error that crosses a process keeps its kind."""

from __future__ import annotations

import pytest

from schemas.errors import (
    ArtifactError,
    ConfigError,
    GateFailed,
    LaddError,
    Locked,
    ServiceUnavailable,
    StageFailed,
    dump_error,
    load_error,
)


@pytest.mark.parametrize(
    "kind",
    [StageFailed, ConfigError, ArtifactError, ServiceUnavailable, Locked, GateFailed, LaddError],
)
def test_an_error_keeps_its_kind_and_exit_code_on_its_way(kind):
    error = load_error(dump_error(kind("the sentence")))
    assert type(error) is kind and str(error) == "the sentence"
    assert error.exit_code == kind.exit_code
