"""Operations that families count from their geometry, against PyTorch's own counter."""

from __future__ import annotations

import json

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from schemas.bucket import Bucket
from schemas.config import ObjectiveConfig, StudentLoraConfig, TeacherConfig
from stages.ladd.backbone import Backbone
from stages.ladd.passes import passes
from stages.teachers import open_teacher
from stages.teachers.sd3_flops import forward_flops
from tests.support.tiny_family import TinyTeacher, make_tiny_teacher
from tests.support.trainers import plain_trainer


def counted(work) -> dict:
    """Operations of the work, by kind. The CPU's fused attention would not be counted."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        work()
    return {str(kind): count for kind, count in counter.get_flop_counts()["Global"].items()}


@pytest.mark.parametrize("folder", ["tiny_sd3", "tiny_sd35_t5"])
def test_sd3_counts_what_a_forward_pass_takes(folder, request):
    model = str(request.getfixturevalue(folder))
    teacher = open_teacher(TeacherConfig(model=model, dtype="float32", max_sequence_length=8))
    _agrees(teacher, teacher.backbone(), Bucket(32, 48))


def test_a_family_of_another_kind_does_too(tmp_path):
    folder = str(make_tiny_teacher(tmp_path / "tiny"))
    teacher = TinyTeacher(TeacherConfig(family="tiny", model=folder, dtype="float32"))
    _agrees(teacher, teacher.backbone().train(), Bucket(8, 12))  # eval fuses what is counted


def _agrees(teacher, backbone: Backbone, bucket: Bucket) -> None:
    text = teacher.encode_prompts(["a red circle"])
    latents = torch.zeros(1, *teacher.latent_shape(bucket))
    with torch.no_grad():
        found = counted(lambda: backbone.velocity(latents, torch.ones(1), text))
    assert sum(found.values()) == teacher.forward_flops(bucket, text.text_tokens)


@pytest.mark.parametrize(
    ("changes", "adapted"),
    [
        ({}, False),
        ({"objective": ObjectiveConfig(r1_weight=1, mismatched_share=0.2)}, False),
        ({"student_time": {"warmup_steps": 0, "rollout": 0.5}}, False),
        ({"lora": StudentLoraConfig(rank=1)}, True),
    ],
)
def test_an_update_takes_the_passes_that_are_said(tiny_backbones, tiny_batch, changes, adapted):
    """Within a fifth: attention costs more backwards than other layers, and adapters something."""
    if adapted:
        from stages.teachers.sd3_lora import add_adapters

        add_adapters(tiny_backbones[0].transformer, changes["lora"], field="lora", seed=0)
    around = [0, 1, 2, 3, 0] if "objective" in changes else [0, 1, 2, 3]
    latents, text = tiny_batch[0][around], tiny_batch[1].select(around)
    trainer = plain_trainer(tiny_backbones, **changes)
    trainer.update(latents, text)  # with the heads' calibration
    found = counted(lambda: trainer.update(latents, text))
    products = sum(count for kind, count in found.items() if "convolution" not in kind)
    config = json.loads(json.dumps(dict(tiny_backbones[1].transformer.config)))
    forward = forward_flops(config, 4, 6, text.text_tokens)
    assert products / 4 / forward == pytest.approx(
        passes(trainer.config, train_student=True), rel=0.2
    )
