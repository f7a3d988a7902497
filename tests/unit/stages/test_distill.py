"""The life of a training without Ray: it goes on, ends earlier, takes a tail, and survives deaths,
always to the bytes of one that was left alone.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from pipeline.base.course import Saved, saved_in
from pipeline.base.stage import StageResult
from pipeline.base.store import Artifact, ArtifactStore
from pipeline.dag import STAGES
from schemas.errors import ConfigError
from stages import distill, encode, prompts, synthesize
from stages.ladd.trainer import LaddTrainer
from stages.training import distill_loop
from stages.training.trace import TrainingTrace
from tests.support.context import commit, make_context
from tests.support.tiny_sd3 import make_tiny_config
from tests.support.training import training_here
from tests.support.without_ray import map_in_this_process

LENGTHS = {"checkpoint_every": 2, "sample_prompts": 0, "keep_every": 4}
"""Of 1 update for the heads and `steps` for the student."""


class Lives:
    """Trainings in one store, of one configuration with changes."""

    def __init__(self, model: Path, store: Path, inputs: list[Artifact], patch: Any) -> None:
        self.model, self.store, self.inputs, self.patch = model, store, inputs, patch
        self.calls: list[str] = []
        self.training = ""

    def run(self, *, lives: int = 0, **changes: Any) -> StageResult | None:
        """Run the stage to its end, or to its death after `lives` checkpoints."""
        config = make_tiny_config(self.model, self.store, distill=LENGTHS | changes)
        stage, keys = STAGES["distill"], [one.manifest.key for one in self.inputs]
        self.training = stage.training_key(config, keys, {})
        store, key = ArtifactStore(config.store), stage.key(config, keys)
        context = make_context(
            "distill", config, store, self.inputs, key=key, training=self.training
        )
        with self.patch.context() as patch:
            patch.setattr(distill, "train_on_ray", training_here(lives, self.calls))
            try:
                return distill.run(context)
            except KeyboardInterrupt:
                return None

    def kept(self) -> list[Saved]:
        return saved_in(ArtifactStore(str(self.store)), f"training/distill/{self.training}")


def contents(result: StageResult) -> dict[str, str]:
    """Digests of the student and of its trace."""
    apart = ("tensorboard/", "signals.jsonl")
    files = {name: seen[1] for name, seen in result.files.items() if not name.startswith(apart)}
    assert "metrics.jsonl" in files and len(files) > 10
    return files


@pytest.fixture(scope="module")
def data(tiny_sd3, tmp_path_factory) -> tuple[Path, list[Artifact]]:
    """A store with prompts and latents."""
    folder = tmp_path_factory.mktemp("lives") / "store"
    config, inputs = make_tiny_config(tiny_sd3, folder), []
    with pytest.MonkeyPatch.context() as patch:
        map_in_this_process(patch)
        for name, module in (("prompts", prompts), ("synthesize", synthesize), ("encode", encode)):
            context = make_context(name, config, ArtifactStore(config.store), inputs)
            inputs.append(commit(context, module.run(context)))
    return folder, [inputs[0], inputs[2]]


@pytest.fixture
def lives(tiny_sd3, data, tmp_path, monkeypatch):
    """Gives a new store's trainings."""

    def new(name: str) -> Lives:
        shutil.copytree(data[0], tmp_path / name)
        return Lives(tiny_sd3, tmp_path / name, data[1], monkeypatch)

    return new


@pytest.mark.slow
def test_a_training_goes_on_and_its_parts_are_artifacts_of_their_own(lives, monkeypatch):
    """10,000 updates and then 15,000, and 6,000 of them, in small."""
    parts = lives("parts")
    whole, half = lives("whole").run(steps=7), lives("half").run(steps=3)
    parts.run(steps=5)
    assert contents(parts.run(steps=7)) == contents(whole)
    assert parts.calls == ["new", "from 6"]
    with monkeypatch.context() as patch:
        patch.setattr(LaddTrainer, "update", pytest.fail)
        taken = parts.run(steps=3)
    assert contents(taken) == contents(half)
    assert taken.details["training"] == {"key": parts.training, "update": 4, "micro_batch": 4}
    # Of 2, 4, 6 and 8: 4 by keep_every, 6 and 8 because artifacts were taken there.
    assert parts.kept() == [Saved(4), Saved(6), Saved(8)]


@pytest.mark.slow
def test_a_decay_is_a_tail_of_the_kept_trunk_and_deaths_change_no_byte(lives):
    """Bug: begin the decay from the trunk's latest checkpoint, or take a tail for the trunk."""
    decay = {"steps": 6, "decay_share": 0.5}
    alone, parts = lives("alone"), lives("parts")
    undisturbed = alone.run(**decay)
    assert parts.run(steps=7, lives=3) is None
    for _ in range(2):
        assert parts.run(**decay, lives=1) is None
    result = parts.run(**decay)
    # Updates 6 and 7 of 7 are the decay. The longer run has come to update 6 of its own.
    assert parts.calls == ["new", "from 4", "from 5", "from 6"]
    assert [one.step for one in parts.kept() if not one.tail] == [4, 5, 6]
    assert contents(result) == contents(undisturbed)
    assert result.details == undisturbed.details
    (trace,) = alone.store.glob("artifacts/distill/*/metrics.jsonl")
    rows = [json.loads(line) for line in trace.read_text().splitlines()]
    assert [row["step"] for row in rows] == [*range(1, 8)]


LOOK = {
    "every": 2,
    "prompts": 2,
    "scores": [{"name": "layout"}],
    "features": {"name": "judge_features"},
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("length", "best", "kept"),
    [
        ({"steps": 7}, 4, [(4, False), (8, False)]),
        ({"steps": 6, "decay_share": 0.5}, 6, [(5, False), (6, True), (7, True)]),
    ],
)
def test_the_checkpoint_of_the_best_look_stays_and_becomes_the_artifact(
    lives, monkeypatch, length, best, kept
):
    """Of looks at every second update, with one latest checkpoint, through deaths: in the trunk,
    and in a decay that begins after update 5.
    """
    add_look = TrainingTrace.add_look

    def better_at_best(trace, step, figures):
        return add_look(trace, step, figures | {"held_out_layout": 1.0 if step == best else 0.5})

    monkeypatch.setattr(TrainingTrace, "add_look", better_at_best)
    chosen, wish = lives("chosen"), {"choose": "best", "choose_by": "layout"}
    options = {"look": LOOK, "keep_every": None, "checkpoints_kept": 1}
    assert chosen.run(**length, **options, **wish, lives=2) is None
    result = chosen.run(**length, **options, **wish)
    assert result.details["training"]["update"] == best
    assert result.metrics["held_out_layout"] == 1.0
    assert [(one.step, one.tail != "") for one in chosen.kept()] == kept
    last = chosen.run(**length, **options)
    assert model_of(last) != model_of(result)
    if "decay_share" not in length:
        assert model_of(chosen.run(steps=best - 1, **options)) == model_of(result)


def model_of(result: StageResult) -> dict[str, str]:
    """Digests of the student."""
    return {name: seen for name, seen in contents(result).items() if name.startswith("model/")}


def test_another_micro_batch_goes_on_and_the_manifest_records_it(lives):
    changed = lives("changed")
    assert changed.run(steps=5, lives=2) is None
    result = changed.run(steps=5, micro_batch=2)
    assert changed.calls == ["new", "from 4"]
    assert result.details["training"]["micro_batch"] == [
        {"from_update": 0, "micro_batch": 4},
        {"from_update": 4, "micro_batch": 2},
    ]


@pytest.mark.slow
@pytest.mark.parametrize("lora", [None, {"rank": 2}])
def test_a_second_training_begins_where_the_first_student_ended(lives, lora, monkeypatch):
    """Bug: start from the teacher, judge by the start, or save adapters on the teacher's."""
    first, second = lives("first"), lives("second")
    begun = first.run(steps=3)
    assert begun is not None
    (student,) = first.store.glob("artifacts/distill/*/model")
    weights = load_file(student / "transformer" / "diffusion_pytorch_model.safetensors")
    seen = []

    class Watched(LaddTrainer):
        def __init__(self, student, teacher, *rest):
            nets = (student.transformer, teacher.transformer)
            seen.append([{n: p.clone() for n, p in net.state_dict().items()} for net in nets])
            super().__init__(student, teacher, *rest)

    monkeypatch.setattr(distill_loop, "LaddTrainer", Watched)
    made = second.run(steps=2, init=str(student), lora=lora)
    ((started, frozen),) = seen
    for name, weight in weights.items():
        parts = name.rpartition(".")
        here = started.get(name, started.get(f"{parts[0]}.base_layer.{parts[2]}"))
        assert torch.equal(here, weight), name
        assert here.dtype == torch.float32
    assert any(not torch.equal(weights[name], frozen[name]) for name in weights)
    assert made.details["init"] == str(student)
    (saved,) = second.store.glob("artifacts/distill/*/model/transformer/*.safetensors")
    moved = load_file(saved)
    far = sum((moved[n] - frozen[n]).abs().sum() for n in weights)
    near = sum((moved[n] - weights[n]).abs().sum() for n in weights)
    assert near < far, "what is saved has the start's weights below its own"


def test_a_start_of_another_shape_is_refused_in_one_sentence(tiny_sd3, tmp_path):
    shutil.copytree(tiny_sd3 / "transformer", tmp_path / "other")
    config = json.loads((tmp_path / "other" / "config.json").read_text())
    for name, value in (("num_layers", 7), ("_class_name", "FluxTransformer2DModel")):
        (tmp_path / "other" / "config.json").write_text(json.dumps(config | {name: value}))
        asked = make_tiny_config(tiny_sd3, tmp_path, distill={"init": str(tmp_path / "other")})
        with pytest.raises(ConfigError, match=rf"distill\.init: .*other has .* as {name}, but"):
            distill.check(asked)
