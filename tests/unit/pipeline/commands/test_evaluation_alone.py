"""`--eval`: the student is evaluated without a configuration of its own for it."""

from __future__ import annotations

import json

import pytest


def planned(call, *arguments):
    code, output, _ = call("plan", "--json", *arguments)
    assert code == 0, output
    rows, _ = json.JSONDecoder().raw_decode(output)
    return {row["stage"]: row for row in rows}


def test_until_distill_with_eval_evaluates_the_student_alone(call):
    """Bug: select `eval` and keep `eval.tuned`; the student's first number then costs a tuning."""
    rows = planned(call, "--until", "distill", "--eval")
    run = {name for name, row in rows.items() if row["action"] == "run"}
    assert run == {"prompts", "synthesize", "encode", "distill", "eval"}
    configured = planned(call, "--set", "eval.tuned=false")
    assert configured["eval"]["key"] == rows["eval"]["key"]


@pytest.mark.parametrize("arguments", [(), ("--until", "dpo"), ("--only", "eval")])
@pytest.mark.parametrize("command", ["plan", "run"])
def test_eval_goes_with_until_distill_alone(call, command, arguments):
    code, output, _ = call(command, "--eval", *arguments)
    assert code == 2 and "give --until distill with it" in output


def test_plan_warns_of_scores_that_had_a_part_in_the_tuning(call):
    _, output, _ = call("plan")
    assert "warning: eval.scores: layout made the pairs" in output
    _, output, _ = call("plan", "--until", "distill")
    assert "warning" not in output
