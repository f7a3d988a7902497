"""The ten silent bugs of LADD.md, each with a test that fails when the bug is put in.

Every docstring says how to put it in; each was put in once and its test seen to fail.
"""

from __future__ import annotations

import contextlib
from itertools import pairwise

import numpy as np
import pytest
import torch

from pipeline.base.store import ArtifactStore
from schemas.bucket import Bucket
from schemas.config import DiscriminatorConfig, DistillConfig, RenoiseConfig, StudentTimeConfig
from stages.ladd.flow import Draws, add_noise, clean_estimate, draw
from stages.ladd.heads import DiscriminatorHeads
from stages.ladd.sampling import Euler, initial_noise, sample_consistency, sample_flow
from stages.ladd.update import MicroBatch, Nets, accumulate_gradients
from stages.teachers.sd3_backbone import SD3Backbone
from tests.support.command import ROOT
from tests.support.context import make_context
from tests.support.pairs import EVEN
from tests.support.silent_bugs import BUGS
from tests.support.tiny_sd3 import make_tiny_config, tiny_transformer

SIGMAS = [1.0, 0.75, 0.5, 0.25]


def no_autocast():
    return contextlib.nullcontext()


def draws_for(latents, sigma):
    generator = torch.Generator().manual_seed(3)
    noise = [torch.randn(latents.shape, generator=generator) for _ in range(2)]
    levels = torch.tensor([0.9, 0.5, 0.7, 0.2])
    return Draws(torch.tensor(sigma), noise[0], levels, noise[1])


class Straight:
    """A flow that goes straight to `target`: its exact solution is known at every step count."""

    def __init__(self, target):
        self.target = target
        self.seen = []

    def velocity(self, x, sigma, conditioning):
        self.seen.append((x.clone(), sigma.clone()))
        return (x - self.target) / sigma.view(-1, 1, 1, 1)


def test_01_no_noise_is_left_in_clean_latents(tiny_teacher):
    """Bug: drop the last 0 from the sigmas (`sigmas[:-2]` in `Euler`, or `[:-1]` of the
    scheduler's).
    """
    target = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    noise, generators = initial_noise([1, 2], target.shape[1:])
    sigmas = tiny_teacher.sigmas(7, Bucket(32, 32))
    assert sigmas[0] == 1.0 and sigmas[-1] == 0.0
    torch.testing.assert_close(
        sample_flow(Straight(target), noise, None, Euler(sigmas)), target, atol=1e-5, rtol=0
    )
    clean = sample_consistency(Straight(target), noise, None, SIGMAS, generators)
    torch.testing.assert_close(clean, target, atol=1e-5, rtol=0)


def test_02_teacher_data_is_guided(tiny_config, tiny_teacher, monkeypatch):
    """Bug: give the sampler in `Synthesizer` a guidance scale of 1, or mix the two halves up."""
    from stages import synthesize

    monkeypatch.setattr(synthesize, "open_teacher_in", lambda pool, config: tiny_teacher)
    maker, backbone = synthesize.Synthesizer(tiny_config, None, "x"), tiny_teacher.backbone()
    seen = {}
    monkeypatch.setattr(
        tiny_teacher,
        "decode_latents",
        lambda z: seen.setdefault("z", z).new_zeros(1, 8, 8, 3).byte().numpy(),
    )
    sample = {"key": "k", "prompt": "a red ring", "seed": 5, "width": 32, "height": 32}
    list(maker._made([sample]))

    x, _ = initial_noise([5], (4, 8, 8))
    sigmas = tiny_teacher.sigmas(2, Bucket(32, 32))
    told, untold = tiny_teacher.encode_prompts(["a red ring"]), tiny_teacher.encode_prompts([""])
    with torch.no_grad():
        for sigma, following in pairwise(sigmas):
            level = torch.tensor([sigma])
            with_prompt = backbone.velocity(x, level, told)
            without = backbone.velocity(x, level, untold)
            x = x + (following - sigma) * (without + 3.0 * (with_prompt - without))
    torch.testing.assert_close(seen["z"], x, atol=1e-4, rtol=1e-4)


def recorded_update(tiny_backbones, tiny_batch, sigma):
    """Run one update and return what student and teacher were fed, with the student's velocity."""
    student, teacher = tiny_backbones
    latents, conditioning = tiny_batch
    fed = {"student": [], "teacher": []}

    class Recording:
        def __init__(self, net, name):
            self.net, self.name = net, name

        def velocity(self, x, level, c):
            fed[self.name].append((x.detach(), level))
            fed["velocity"] = self.net.velocity(x, level, c)
            return fed["velocity"]

        def features(self, x, level, c):
            fed[self.name].append((x.detach(), level))
            return self.net.features(x, level, c)

    heads = DiscriminatorHeads(teacher.tap_widths, 24, DiscriminatorConfig(channels=8))
    draws = draws_for(latents, sigma)
    nets = Nets(Recording(student, "student"), Recording(teacher, "teacher"), heads, no_autocast)
    accumulate_gradients(nets, MicroBatch(latents, conditioning, draws))
    return fed, latents, draws


def test_03_student_sees_the_noised_latent(tiny_backbones, tiny_batch):
    """Bug: pass `draws.student_noise_BCHW` to the student in `accumulate_gradients` whatever its
    level.
    """
    fed, latents, draws = recorded_update(tiny_backbones, tiny_batch, SIGMAS)
    ((x, level),) = fed["student"]
    expected = torch.stack(
        [
            (1 - t) * z + t * e
            for z, e, t in zip(latents, draws.student_noise_BCHW, SIGMAS, strict=True)
        ]
    )
    torch.testing.assert_close(x, expected)
    assert level.tolist() == SIGMAS


def test_04_fake_is_the_clean_estimate_not_the_velocity(tiny_backbones, tiny_batch):
    """Bug: use `velocity` in place of `clean_estimate(...)` in `accumulate_gradients`."""
    fed, latents, draws = recorded_update(tiny_backbones, tiny_batch, SIGMAS)
    x_t = fed["student"][0][0]
    fake = torch.stack(
        [x - t * v for x, v, t in zip(x_t, fed["velocity"].detach(), SIGMAS, strict=True)]
    )
    expected = add_noise(fake, draws.renoise_noise_BCHW, draws.renoise_sigma_B)
    torch.testing.assert_close(fed["teacher"][0][0], expected)
    exact = clean_estimate(
        add_noise(latents, draws.student_noise_BCHW, draws.student_sigma_B),
        draws.student_noise_BCHW - latents,
        draws.student_sigma_B,
    )
    torch.testing.assert_close(exact, latents, atol=1e-5, rtol=1e-5)


def test_05_real_latents_are_shifted_and_scaled(tiny_teacher):
    """Bug: leave out `shift_factor`, or divide by `scaling_factor`, in `encode_pictures`."""
    from diffusers import AutoencoderKL

    pictures = np.random.default_rng(0).integers(0, 255, (2, 32, 48, 3), dtype=np.uint8)
    vae = AutoencoderKL.from_pretrained(tiny_teacher.folder / "vae")
    pixels = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.no_grad():
        z = vae.encode(pixels).latent_dist.mode()
        expected = (z - 0.06) * 1.5
        tiny_teacher._vae_autocast = contextlib.nullcontext
        latents = tiny_teacher.encode_pictures(pictures)
        torch.testing.assert_close(latents, expected, atol=1e-5, rtol=1e-4)
        decoded = tiny_teacher.decode_latents(latents)
        shown = ((vae.decode(z).sample.clamp(-1, 1) + 1) * 127.5).round().byte()
    assert np.abs(decoded.astype(int) - shown.permute(0, 2, 3, 1).numpy().astype(int)).max() <= 1


def test_06_gradient_reaches_the_student_through_the_frozen_teacher(tiny_backbones, tiny_batch):
    """Bug: wrap `fake_features` in `torch.no_grad()` in `accumulate_gradients`, or detach
    `fake`.
    """
    student, teacher = tiny_backbones
    heads = DiscriminatorHeads(teacher.tap_widths, 24, DiscriminatorConfig(channels=8))
    latents, conditioning = tiny_batch
    nets = Nets(student, teacher, heads, no_autocast)
    accumulate_gradients(nets, MicroBatch(latents, conditioning, draws_for(latents, SIGMAS)))
    assert student.transformer.proj_out.weight.grad.abs().sum() > 0
    assert student.transformer.pos_embed.proj.weight.grad.abs().sum() > 0
    assert all(p.grad is None for p in teacher.parameters())


@pytest.mark.parametrize("shape", [(8, 12), (12, 8), (4, 24)])
def test_07_features_keep_the_latents_shape(shape):
    """Bug: reshape tokens to a square, or swap rows and columns, in `SD3Backbone.forward`."""
    from stages.ladd.backbone import Conditioning

    net = tiny_transformer()
    backbone = SD3Backbone(net)
    tokens = []
    net.transformer_blocks[1].register_forward_hook(lambda m, a, out: tokens.append(out[1]))
    x = torch.randn(2, 4, *shape, generator=torch.Generator().manual_seed(0))
    conditioning = Conditioning(torch.randn(2, 5, 24), torch.randn(2, 24))
    with torch.no_grad():
        maps = backbone.features(x, torch.tensor([0.5, 0.7]), conditioning)
    rows, columns = shape[0] // 2, shape[1] // 2
    assert [m.shape for m in maps] == [(2, 16, rows, columns)] * 3
    assert all(m.is_contiguous() for m in maps)
    for i in range(rows):
        for j in range(columns):
            torch.testing.assert_close(maps[1][:, :, i, j], tokens[0][:, i * columns + j])


def test_08_activation_checkpointing_leaves_the_taps_right(tiny_batch):
    """Bug: collect features by appending in a forward hook: the backward pass runs each block
    again.
    """
    latents, conditioning = tiny_batch
    results = []
    for checkpoint_blocks in (False, True):
        backbone = SD3Backbone(
            tiny_transformer(), checkpoint_blocks=checkpoint_blocks
        ).requires_grad_(False)
        x = latents.clone().requires_grad_()
        maps = backbone.features(x, torch.full((4,), 0.6), conditioning)
        sum((k + 1) * m.square().mean() for k, m in enumerate(maps)).backward()
        assert len(maps) == 3
        results.append((x.grad, maps))
    torch.testing.assert_close(results[0][0], results[1][0])
    for plain, checkpointed in zip(results[0][1], results[1][1], strict=True):
        torch.testing.assert_close(plain, checkpointed)


def test_09_the_average_is_what_is_sampled_and_saved(tiny_teacher, tmp_path):
    """Bug: save `state["student"]` in `_finish`, or leave out `swap_with` in `SampleGrids.put`."""
    from diffusers import SD3Transformer2DModel

    from stages.ladd.ema import ExponentialAverage
    from stages.pictures.sample_grids import SampleGrids

    student = tiny_teacher.backbone(dtype=torch.float32)
    average = ExponentialAverage(student, 0.5)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(1.0)
    grids = SampleGrids.__new__(SampleGrids)
    grids.student, grids.average, grids.samples, seen = student, average, ["one"], []
    grids.config = make_tiny_config(tmp_path, tmp_path, encode={"embeddings": "online"})
    grids.context = make_context("distill", grids.config, ArtifactStore(str(tmp_path / "store")))
    grids._draw = lambda: (seen.append(student.transformer.proj_out.bias.clone()) or b"png", [])

    grids.put(1, folder="grids")
    original = SD3Transformer2DModel.from_pretrained(
        tiny_teacher.folder / "transformer"
    ).proj_out.bias
    torch.testing.assert_close(seen[0], original)
    torch.testing.assert_close(student.transformer.proj_out.bias, original + 1)

    tiny_teacher.save_student(tmp_path / "model", average.copy_to, EVEN)
    saved = SD3Transformer2DModel.from_pretrained(tmp_path / "model" / "transformer").proj_out.bias
    torch.testing.assert_close(saved, original)


def test_10_ranks_draw_different_noise_that_does_not_depend_on_their_number():
    """Bug: seed `draw` by step alone, or by the position within the rank's share instead of the
    global slot.
    """
    config = DistillConfig()

    def noise(slots):
        return draw(
            7, 3, slots, torch.Size((4, 8, 8)), config.student_time, config.renoise, student_step=3
        )

    whole, first, second = noise(range(8)), noise(range(4)), noise(range(4, 8))
    for name in ("student_sigma_B", "student_noise_BCHW", "renoise_sigma_B", "renoise_noise_BCHW"):
        joined = torch.cat([getattr(first, name), getattr(second, name)])
        assert torch.equal(getattr(whole, name), joined)
    flat = whole.student_noise_BCHW.flatten(1)
    assert torch.pdist(flat).min() > 1
    assert torch.pdist(torch.cat([flat, whole.renoise_noise_BCHW.flatten(1)])).min() > 1
    other_step = draw(
        7, 4, range(8), torch.Size((4, 8, 8)), StudentTimeConfig(), RenoiseConfig(), student_step=4
    )
    assert not torch.equal(other_step.student_noise_BCHW, whole.student_noise_BCHW)


def test_each_bug_can_still_be_put_in():
    """Else `python -m tests.put_bugs_in` proves nothing any more."""
    for number, name, right, _ in BUGS:
        assert right in (ROOT / name).read_text(), number
