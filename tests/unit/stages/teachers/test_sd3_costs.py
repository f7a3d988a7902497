"""What a model costs by its JSON files, against PyTorch's own counter and the files themselves."""

from __future__ import annotations

import json
import math

import pytest
import torch
from safetensors.torch import load_file
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from schemas.bucket import Bucket
from schemas.config import DistillConfig, StudentLoraConfig, StudentTimeConfig, TeacherConfig
from stages.teachers import FAMILIES, model_costs, open_teacher
from stages.teachers.sd3_costs import SD3Costs
from stages.teachers.sd3_parts import autoencoder_parameters, decoding_flops, encoding_flops
from stages.teachers.sd3_published import OTHERS
from tests.support.command import ROOT

BUCKET = Bucket(32, 48)


def teacher_config(folder, **changes) -> TeacherConfig:
    plain = {"model": str(folder), "dtype": "float32", "max_sequence_length": 8}
    return TeacherConfig(**(plain | changes))


def costs_of(config: TeacherConfig) -> SD3Costs:
    found = model_costs(config)
    assert isinstance(found, SD3Costs)
    return found


def counted(work) -> int:
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


@pytest.mark.parametrize("folder", ["tiny_sd3", "tiny_sd35_t5"])
def test_operations_of_every_part_are_those_that_torch_counts(folder, request):
    config = teacher_config(request.getfixturevalue(folder))
    costs, teacher = costs_of(config), open_teacher(config)
    latents = torch.zeros(1, *teacher.latent_shape(BUCKET))
    pictures = torch.zeros(1, BUCKET.height, BUCKET.width, 3, dtype=torch.uint8).numpy()
    assert costs.decoding(BUCKET) == counted(lambda: teacher.decode_latents(latents))
    assert costs.encoding(BUCKET) == counted(lambda: teacher.encode_pictures(pictures))
    assert costs.latents(BUCKET) == latents.numel()
    text = []
    found = counted(lambda: text.append(teacher.encode_prompts(["a red circle"])))
    assert costs.text() == found
    assert costs.forward(BUCKET) == teacher.forward_flops(BUCKET, text[0].text_tokens)
    stored = text[0].tokens_BLD.numel() + text[0].pooled_BP.numel()
    assert costs.embedding() == stored
    assert costs.padding() == (text[0].tokens_BLD == 0).sum()


def test_operations_of_the_autoencoder_are_those_of_the_card():
    """Counted by torch for 1024 x 1024 pixels (docs/gpu-results.json), with attention inside."""
    cases = json.loads((ROOT / "docs/gpu-results.json").read_text())["cases"]
    vae = OTHERS["vae/config.json"]
    for case, flops in (("decode", decoding_flops), ("encode", encoding_flops)):
        row = cases[f"{case}, 1024x1024"]
        assert flops(vae, 128, 128) / 1e12 == pytest.approx(row["tflop"] / row["batch"])


def test_bytes_of_the_folder_are_those_of_its_files(tiny_sd35_t5, tmp_path):
    config = teacher_config(tiny_sd35_t5)
    teacher = open_teacher(config)
    student = tmp_path / "student"
    grid = teacher.student_grid(StudentTimeConfig())
    teacher.save_student(student, lambda backbone: None, grid)
    written = sum(path.stat().st_size for path in student.rglob("*") if path.is_file())
    assert costs_of(config).folder_bytes() == pytest.approx(written, rel=0.1)
    without = costs_of(teacher_config(tiny_sd35_t5, use_t5=False))
    assert without.folder_bytes() < costs_of(config).folder_bytes()
    assert without.text_bytes() < costs_of(config).text_bytes()


@pytest.mark.parametrize("part", ["text_encoder", "text_encoder_2", "text_encoder_3", "vae"])
def test_weights_are_counted_but_for_biases_and_norms(tiny_sd35_t5, part):
    from stages.teachers.sd3_parts import clip_parameters, t5_parameters

    settings = json.loads((tiny_sd35_t5 / part / "config.json").read_text())
    count = {"vae": autoencoder_parameters, "text_encoder_3": t5_parameters}
    (file,) = (tiny_sd35_t5 / part).glob("*.safetensors")
    matrices = [w for name, w in load_file(file).items() if w.dim() > 1 and "relative" not in name]
    found = count.get(part, clip_parameters)(settings)
    assert found == sum(math.prod(matrix.shape) for matrix in matrices)


def test_a_checkpoint_holds_as_many_bytes_as_are_said(
    tiny_sd3, tiny_backbones, tiny_batch, tmp_path
):
    from stages.ladd.trainer import LaddTrainer

    student, teacher = tiny_backbones
    distill = DistillConfig(global_batch=4, discriminator={"channels": 8}, precision="float32")
    trainer = LaddTrainer(student, teacher, 24, distill, torch.device("cpu"))
    trainer.update(*tiny_batch)  # which makes the moments
    trainer.save(tmp_path)
    files = [load_file(path) for path in tmp_path.rglob("*.safetensors")]
    written = sum(tensor.nbytes for tensors in files for tensor in tensors.values())
    costs = costs_of(teacher_config(tiny_sd3, use_t5=False))
    assert costs.checkpoint_bytes(distill) == pytest.approx(written, rel=0.1)
    adapters = distill.model_copy(update={"lora": StudentLoraConfig(rank=1)})
    assert costs.checkpoint_bytes(adapters) < costs.checkpoint_bytes(distill)


def test_a_published_model_is_known_before_it_is_on_this_machine(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    medium = costs_of(TeacherConfig(model="stabilityai/stable-diffusion-3.5-medium"))
    assert medium.folder is None
    assert medium.forward(Bucket(1024, 1024)) == pytest.approx(11.2e12, rel=0.01)
    assert medium.folder_bytes() == pytest.approx(4.49e9 + 9.5e9 + 1.8e9, rel=0.05)
    assert model_costs(TeacherConfig(model="someone/else")) is None
    assert model_costs(TeacherConfig(family="unheard")) is None


def test_every_family_says_what_it_costs():
    assert all(family.costs for family in FAMILIES.values())
    embedded = TeacherConfig(family="shapes", use_t5=False)
    assert costs_of(embedded).blocks == 6
