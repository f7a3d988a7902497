"""The training state of LADD, and its one operation: an update. Knows neither data nor storage.

A resumed trainer repeats an undisturbed one exactly: all randomness comes from seed, step and slot.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from schemas.config import DistillConfig
from stages.ladd.backbone import Backbone, Conditioning
from stages.ladd.batch_plan import accumulation_rounds, mismatched_slots, slots_of
from stages.ladd.checkpoint import (
    begin_optimizer,
    load_tensors,
    names_in,
    optimizer_tensors,
    save_tensors,
)
from stages.ladd.ema import ExponentialAverage
from stages.ladd.flow import add_noise, draw
from stages.ladd.heads import DiscriminatorHeads, channel_moments
from stages.ladd.health import SKIPPED, UNSCALED, Net, not_finite
from stages.ladd.optimizer import adamw, step
from stages.ladd.parallel import clip_gradients, rank_and_world, sum_over_ranks
from stages.ladd.precision import autocast
from stages.ladd.rollout import rolled_out
from stages.ladd.update import MicroBatch, Mismatched, Nets, accumulate_gradients


class LaddTrainer:
    """Student, frozen teacher, heads, the optimizers, and the average of the student's weights.

    `student` and `teacher` are modules that are backbones, on `device`. `pooled_width` is P of the
    conditioning, 0 for a teacher without pooled embedding.
    """

    def __init__(
        self,
        student: Backbone,
        teacher: Backbone,
        pooled_width: int,
        config: DistillConfig,
        device: torch.device,
    ) -> None:
        self.config = config
        self.device = device
        self.student = student
        self.teacher = teacher.requires_grad_(False).eval()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            heads = DiscriminatorHeads(teacher.tap_widths, pooled_width, config.discriminator)
        self.heads = heads.to(device)
        away = torch.device("cpu") if config.ema_device == "cpu" else None
        self.average = ExponentialAverage(student, config.ema_decay, away)
        trained = [p for p in student.parameters() if p.requires_grad]
        self.student_optimizer = adamw(trained, config, config.optimizer_bits)
        self.heads_optimizer = adamw(heads.parameters(), config)
        self.step = 0

    def update(
        self,
        x0_BCHW: Tensor,
        conditioning: Conditioning,
        rate_scale: Mapping[Net, float] = UNSCALED,
    ) -> dict[str, float]:
        """Train on this rank's share of the global batch; returns metrics of the whole batch.

        Latents and conditioning may be in half precision and on another device. Where the objective
        has a `mismatched_share`, they hold one sample more: the next of the global batch, whose
        prompt is needed. `rate_scale` multiplies the learning rates. Where a loss or a gradient is
        not finite, on all ranks alike, the update is `skipped`: weights, moments and average stay
        as they are, and the next update draws other noise.
        """
        config = self.config
        turn = self.step - config.discriminator.head_start_steps
        student_step = max(turn // config.discriminator.updates_per_student, 0)
        train_student = turn >= 0 and turn % config.discriminator.updates_per_student == 0
        # To the device first: in half precision they are half as much to copy.
        batches = self._micro_batches(
            x0_BCHW.to(self.device).float(),
            conditioning.to(self.device).to(self.device, torch.float32),
            student_step,
        )
        if not self.heads_optimizer.state:  # no update so far, or none that was finite
            self._calibrate_heads(batches)
        metrics = self._accumulate(batches, train_student)
        trained: list[tuple[Net, nn.Module, torch.optim.Optimizer, float]]
        trained = [("heads", self.heads, self.heads_optimizer, config.discriminator.learning_rate)]
        if train_student:
            trained.append(("student", self.student, self.student_optimizer, self._student_rate()))
        for name, net, _, _ in trained:
            metrics[f"{name}_grad_norm"] = clip_gradients(net, config.clip_norm)
        if not_finite(metrics):
            metrics[SKIPPED] = 1.0
        else:
            for name, _, optimizer, rate in trained:
                step(optimizer, rate * rate_scale[name])
            if train_student:
                self.average.update(self.student, student_step)
        for _, _, optimizer, _ in trained:
            optimizer.zero_grad(set_to_none=True)
        self.step += 1
        return metrics

    def _accumulate(self, batches: list[MicroBatch], train_student: bool) -> dict[str, float]:
        """Gradients of this rank's micro-batches; returns losses and logits of the global batch."""
        config = self.config
        nets = Nets(self.student, self.teacher, self.heads, self.autocast)
        sums = torch.zeros(4, device=self.device)
        for batch in batches:
            if config.student_time.rollout > 0:
                grid = config.student_time.grid
                with self.autocast():
                    start = rolled_out(
                        self.student, batch.latents_BCHW, batch.prompts, batch.draws, grid
                    )
                batch = replace(batch, start_BCHW=start)
            losses = accumulate_gradients(
                nets, batch, config.objective, train_student=train_student
            )
            sums += batch.share * torch.stack(
                [losses.student, losses.discriminator, losses.real_logit, losses.fake_logit]
            )
        sum_over_ranks([sums])
        names = ("student_loss", "discriminator_loss", "real_logit", "fake_logit")
        return dict(zip(names, sums.tolist(), strict=True))

    def _micro_batches(
        self, x0_BCHW: Tensor, conditioning: Conditioning, student_step: int
    ) -> list[MicroBatch]:
        """This rank's samples, cut into accumulation rounds, each with its own noise."""
        config = self.config
        rank, world = rank_and_world()
        mine = slots_of(config.global_batch, rank, world)
        assert len(x0_BCHW) == len(mine) + (config.objective.mismatched_share > 0)
        return [
            MicroBatch(
                latents_BCHW=x0_BCHW[rows],
                prompts=conditioning.select(rows),
                draws=draw(
                    config.seed,
                    self.step,
                    mine[rows],
                    x0_BCHW.shape[1:],
                    config.student_time,
                    config.renoise,
                    student_step=student_step,
                    near=config.objective.r1_weight > 0,
                ).to(self.device),
                share=(rows.stop - rows.start) / config.global_batch,
                mismatched=self._mismatched(rows, mine, conditioning),
            )
            for rows in accumulation_rounds(config, rank, world)
        ]

    def _mismatched(
        self, rows: slice, mine: range, conditioning: Conditioning
    ) -> Mismatched | None:
        """The mismatched samples among a round's, each under the next sample's prompt."""
        config = self.config
        slots = mismatched_slots(config.global_batch, config.objective.mismatched_share)
        if not slots:
            return None
        chosen = [row for row in range(rows.start, rows.stop) if mine[row] in slots]
        share = (rows.stop - rows.start) / config.global_batch
        weight = len(chosen) / len(slots) / share
        # A rank without such a sample still runs the teacher on one, with weight 0: where the
        # teacher is sharded, every rank must take part in the call.
        chosen = chosen or [rows.start]
        return Mismatched(
            [row - rows.start for row in chosen],
            conditioning.select([row + 1 for row in chosen]),
            weight,
        )

    @torch.no_grad()
    def _calibrate_heads(self, batches: list[MicroBatch]) -> None:
        """Standardize the heads' inputs by the data of the whole first batch, at the noise levels
        that are drawn for it.
        """
        parts = []
        for batch in batches:
            sigma = batch.draws.renoise_sigma_B
            with self.autocast():
                noised = add_noise(batch.latents_BCHW, batch.draws.renoise_noise_BCHW, sigma)
                parts.append(channel_moments(self.teacher.features(noised, sigma, batch.prompts)))
        moments = torch.stack(parts).sum(0)
        sum_over_ranks([moments])
        self.heads.calibrate(moments)

    @property
    def rates(self) -> dict[str, float]:
        """The learning rates of the latest updates of student and heads."""
        return {
            f"{part}_rate": float(optimizer.param_groups[0]["lr"])
            for part, _, optimizer in self._learners()
        }

    def autocast(self) -> torch.autocast:
        return autocast(self.device, enabled=self.config.precision == "bfloat16")

    def save(self, folder: Path) -> None:
        """Write everything that the next update depends on. Every rank calls this."""
        save_tensors(folder, self._tensors())

    def load(self, folder: Path) -> None:
        """Restore what `save` wrote, on any number of ranks. Raises CheckpointError."""
        names = names_in(folder)
        for part, net, optimizer in self._learners():
            prefix = f"{part}_optimizer."
            own = {name.removeprefix(prefix) for name in names if name.startswith(prefix)}
            begin_optimizer(net, optimizer, own)
        tensors = self._tensors()
        load_tensors(folder, tensors)
        self.step = int(tensors["step"])

    def _tensors(self) -> dict[str, Tensor]:
        tensors = {"step": torch.tensor(self.step)}
        for part, net, optimizer in self._learners():
            trained = {name: p for name, p in net.named_parameters() if p.requires_grad}
            for prefix, named in (
                (part, trained),
                (f"{part}_optimizer", optimizer_tensors(net, optimizer)),
            ):
                tensors |= {f"{prefix}.{name}": value for name, value in named.items()}
        tensors |= {f"heads.{name}": value for name, value in self.heads.named_buffers()}
        return tensors | {f"average.{name}": p for name, p in self.average.named_parameters()}

    def _learners(self) -> list[tuple[str, nn.Module, torch.optim.Optimizer]]:
        return [
            ("student", self.student, self.student_optimizer),
            ("heads", self.heads, self.heads_optimizer),
        ]

    def _student_rate(self) -> float:
        """Rises linearly during the warm-up and falls linearly at the end."""
        config = self.config
        scale = config.decay(self.step)
        if config.warmup_updates > 0:
            turn = self.step - config.discriminator.head_start_steps
            done = turn // config.discriminator.updates_per_student
            scale *= min(1.0, (done + 1) / config.warmup_updates)
        return config.learning_rate * scale
