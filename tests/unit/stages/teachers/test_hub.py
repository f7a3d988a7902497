"""Models that are nowhere."""

from __future__ import annotations


def test_model_that_is_nowhere(refused):
    code, text = refused(teacher={"model": "nobody/no-such-model"})
    assert code == 2, text
    assert (
        "teacher.model: 'nobody/no-such-model' is neither a local folder nor a model that the "
        "hub provides" in text
    )
