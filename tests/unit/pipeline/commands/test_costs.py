"""What `plan` prints of hours, bytes and money."""

from __future__ import annotations

import json

import pytest

from pipeline.commands.cost_table import duration
from tests.support.command import call_here

H100S = ("--set", "costs.device=nvidia-h100", "--set", "costs.devices=8")
PRICED = ("--set", "costs.prices.nvidia-h100=2.5", "--set", "costs.storage_price=20")
GRAMMAR = ("--set", "prompts.sources=[{kind: grammar}]")


def plan(tmp_path, *arguments: str) -> str:
    done = call_here("plan", *arguments, "--set", f"store={tmp_path}/store")
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_plan_says_hours_bytes_and_money_and_what_they_rest_on(tmp_path):
    shown = plan(tmp_path, "--preset", "shapes", *H100S, *PRICED)
    for word in ("device-h", "in store", "disk", "memory", "USD", "in all: ", "a month"):
        assert word in shown, word
    assert "a device reaches 25% of 989 TFLOP/s in sampling" in shown
    free = plan(tmp_path, "--preset", "shapes", *H100S)
    assert "USD" not in free and "in all: " in free


def test_json_has_the_same_figures(tmp_path):
    rows = json.loads(plan(tmp_path, "--preset", "shapes", "--json", *H100S, *PRICED))
    by = {row["stage"]: row["cost"] for row in rows}
    assert by["synthesize"]["samples"] == 1430 and by["synthesize"]["source"] == "model"
    assert by["distill"]["price"] > 0 and by["distill"]["flops"] > 1e12
    assert all(by[name]["worker_device_bytes"] > 1e6 for name in by if name != "prompts")
    only = json.loads(plan(tmp_path, "--preset", "shapes", "--json", "--until", "prompts"))
    assert [row["stage"] for row in only if row["cost"]] == ["prompts"]


def test_text_encoders_that_take_turns_with_the_transformer_are_not_counted_beside_it(tmp_path):
    arguments = ("--preset", "sd35-medium", "--json", "--until", "synthesize", *GRAMMAR, *H100S)
    turns = ("--set", "synthesize.offload_text_encoders=true")
    (beside,), (alone,) = (
        [row["cost"]["worker_device_bytes"] for row in rows if row["stage"] == "synthesize"]
        for rows in (json.loads(plan(tmp_path, *arguments, *more)) for more in ((), turns))
    )
    assert 12e9 < beside - alone < 14e9


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("costs.device=tpu-v5", "or name their kind in costs.device"),
        ("pairs.url=votes.jsonl", "not counted: pairs; that needs prompts.count"),
    ],
)
def test_what_is_not_counted_is_said_with_what_would_help(tmp_path, setting, words):
    (tmp_path / "votes.jsonl").write_text('{"prompt": "a", "winner": "w", "loser": "l"}\n')
    setting = setting.replace("votes", f"{tmp_path}/votes")
    shown = plan(tmp_path, "--preset", "shapes", "--set", setting)
    assert words in shown


def test_a_machine_of_which_a_part_is_used_may_cost_more(tmp_path):
    shown = plan(tmp_path, "--preset", "shapes", *H100S, *PRICED)
    assert "if all 8 are paid from start to end: " in shown


@pytest.mark.parametrize(
    ("seconds", "text"), [(5, "5 s"), (600, "10 min"), (36_000, "10.0 h"), (400_000, "4.6 d")]
)
def test_durations(seconds, text):
    assert duration(seconds) == text
