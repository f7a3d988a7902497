"""What a person sees while stages run."""

from __future__ import annotations

import json

from pipeline.observe import Observer


def test_progress_is_a_line_every_thirty_seconds_with_rate_and_time_left(capsys):
    now = iter([0.0, 10.0, 31.0, 40.0])
    observer = Observer(clock=lambda: next(now))
    for done in (0, 5, 31, 100):
        observer.progress("encode", "shards", done, 100)
    lines = capsys.readouterr().err.splitlines()
    assert lines[-2].startswith("encode  31/100 shards  1.00/s  1:09 left")
    assert lines[-1].startswith("encode  100/100 shards")


def test_json_log_and_warnings(capsys):
    observer = Observer(log_format="json")
    observer.warn("distill", "collapse")
    row = json.loads(capsys.readouterr().err)
    assert (row["event"], row["stage"], row["text"]) == ("warning", "distill", "collapse")
    assert observer.events == [row]


def test_text_of_users_is_not_taken_for_markup(capsys):
    Observer().event("failed", stage="x", error="[bold]no[/bold] [link=http://x]y")
    assert "[bold]no[/bold] [link=http://x]y" in capsys.readouterr().err
