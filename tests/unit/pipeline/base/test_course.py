"""Which checkpoints an artifact can be taken from, and which stay."""

from __future__ import annotations

from pipeline.base.course import (
    Course,
    Keeping,
    Saved,
    Work,
    keep,
    note_best,
    noted_in,
    number_list,
)
from pipeline.base.store import ArtifactStore


def test_names_say_update_and_tail():
    for saved in (Saved(500), Saved(10_000), Saved(7, "0123456789abcdef")):
        assert Saved.parse(saved.name) == saved
    assert Saved.parse("checkpoint_2026-11-27_19-13-03.222721") is None
    assert Saved(500).name < Saved(10_000).name


def test_an_artifact_goes_on_from_its_own_tail_or_from_the_trunk_before_its_branch():
    """Bug: go on from the latest checkpoint; then a shorter result has a longer one's updates."""
    there = [Saved(4), Saved(6), Saved(8), Saved(7, "mine"), Saved(8, "mine"), Saved(9, "other")]
    course = Course(trunk=6, total=8)
    mine = [Saved(8, "mine"), Saved(7, "mine"), Saved(6), Saved(4)]
    assert course.starts(there, "mine") == mine
    assert course.starts(there, "new") == [Saved(6), Saved(4)]


def test_the_latest_stay_and_those_that_artifacts_were_taken_from():
    """Bug: keep the latest of the trunk alone; then a shorter run removes what it has just saved,
    because a longer one was there before it.
    """
    trunk = [Saved(step) for step in range(1, 11)]
    tails = [Saved(step, tail) for tail in "ab" for step in (4, 5, 6)]
    gone = Keeping(latest=2, every=5).expendable(
        [*trunk, *tails], now=3, noted={Saved(7), Saved(4, "b")}
    )
    assert {*trunk, *tails} - {*gone} == {
        *(Saved(2), Saved(3), Saved(5), Saved(7), Saved(9), Saved(10)),
        *(Saved(step, tail) for tail in "ab" for step in (5, 6)),
        Saved(4, "b"),
    }


def test_taken_updates_and_the_best_of_each_artifact_are_remembered(tmp_path):
    """Bug: note the best as taken, so that it stays when another is better."""
    store, where = ArtifactStore(str(tmp_path)), "training/distill/k"
    for key, best in (("a", Saved(4)), ("a", Saved(6)), ("b", Saved(7, "b"))):
        note_best(store, where, key, best)
    for step in (6, 2, 6):
        keep(store, where, step)
    assert noted_in(store, where) == {Saved(2), Saved(6), Saved(7, "b")}
    note_best(store, where, "a", Saved(5))
    assert noted_in(store, where) == {Saved(2), Saved(5), Saved(6), Saved(7, "b")}


def test_the_micro_batch_is_a_number_until_it_changes():
    work = Work().on(0, 8).on(500, 8)
    assert work.shown_micro_batch() == 8
    assert work.on(900, 4).shown_micro_batch() == [
        {"from_update": 0, "micro_batch": 8},
        {"from_update": 900, "micro_batch": 4},
    ]


def test_numbers_stand_in_a_sentence():
    assert [number_list(steps) for steps in ([], [5], [5, 1000], [1, 2, 3])] == [
        *("", "5", "5 and 1,000", "1, 2 and 3")
    ]
