"""The training state of LADD and its one operation: an update. Pure torch; who calls it, reads data
and saves.

A resumed trainer repeats an undisturbed one exactly: all randomness comes from seed, step and slot.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

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
from stages.ladd.flow import Draws, add_noise, draw
from stages.ladd.heads import DiscriminatorHeads, channel_moments
from stages.ladd.parallel import clip_gradients, rank_and_world, sum_over_ranks
from stages.ladd.rollout import rolled_out
from stages.ladd.update import Mismatched, accumulate_gradients


class TrainingDiverged(RuntimeError):
    """A loss or gradient is no longer a finite number."""


class Round(NamedTuple):
    """What goes through the nets at once: some of a rank's samples."""

    latents_BCHW: Tensor
    prompts: Conditioning
    mismatched: Mismatched | None
    draws: Draws


class LaddTrainer:
    """Student, frozen teacher, heads, their optimizers and the student's average.

    `student` and `teacher` are backbones that are modules too, on `device`. `pooled_width` is P of
    the conditioning.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        pooled_width: int,
        config: DistillConfig,
        device: torch.device,
    ) -> None:
        self.config = config
        self.device = device
        self.student: Backbone = student
        self.teacher: Backbone = teacher.requires_grad_(False).eval()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            heads = DiscriminatorHeads(teacher.tap_widths, pooled_width, config.discriminator)
        self.heads = heads.to(device)
        away = torch.device("cpu") if config.ema_device == "cpu" else None
        self.average = ExponentialAverage(student, config.ema_decay, away)
        trained = [p for p in student.parameters() if p.requires_grad]
        self.student_optimizer = _adamw(trained, config)
        self.heads_optimizer = _adamw(heads.parameters(), config)
        self.step = 0

    def update(self, x0_BCHW: Tensor, conditioning: Conditioning) -> dict[str, float]:
        """Train on this rank's share of the global batch; returns metrics of the whole batch.

        Both may come in half precision from another device; float32 is made of them on this one.
        Where the objective has a share of mismatched prompts, there is one sample more, the next in
        the global batch: its prompt is wanted. Raises TrainingDiverged, with all weights as they
        were, when a loss or a gradient is not finite.
        """
        config = self.config
        turn = self.step - config.discriminator.head_start_steps
        student_step = max(turn // config.discriminator.updates_per_student, 0)
        train_student = turn >= 0 and turn % config.discriminator.updates_per_student == 0
        rounds = self._rounds(
            x0_BCHW.to(self.device).float(),
            conditioning.to(self.device).to(self.device, torch.float32),
            student_step,
        )
        if self.step == 0:
            self._calibrate_heads(rounds)
        sums = torch.zeros(4, device=self.device)
        for latents, prompts, mismatched, draws in rounds:
            start = None
            if config.student_time.rollout > 0:
                with self.autocast():
                    start = rolled_out(
                        self.student, latents, prompts, draws, config.student_time.grid
                    )
            part = len(latents) / config.global_batch
            losses = accumulate_gradients(
                self.student,
                self.teacher,
                self.heads,
                latents,
                prompts,
                draws,
                start_BCHW=start,
                mismatched=mismatched,
                objective=config.objective,
                share=part,
                train_student=train_student,
                autocast=self.autocast,
            )
            sums += part * torch.stack(
                [losses.student, losses.discriminator, losses.real_logit, losses.fake_logit]
            )
        sum_over_ranks([sums])
        metrics = dict(
            zip(
                ("student_loss", "discriminator_loss", "real_logit", "fake_logit"),
                sums.tolist(),
                strict=True,
            )
        )
        trained = [("heads", self.heads, self.heads_optimizer, config.discriminator.learning_rate)]
        if train_student:
            trained.append(("student", self.student, self.student_optimizer, self._student_rate()))
        for name, net, _, _ in trained:
            metrics[f"{name}_grad_norm"] = clip_gradients(net, config.clip_norm)
        if not all(torch.isfinite(torch.tensor(list(metrics.values())))):
            raise TrainingDiverged(
                f"update {self.step}: {metrics} holds a value that is not a finite number"
            )
        for _, _, optimizer, rate in trained:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        if train_student:
            self.average.update(self.student, student_step)
        self.step += 1
        return metrics

    def _rounds(
        self, x0_BCHW: Tensor, conditioning: Conditioning, student_step: int
    ) -> list[Round]:
        """This rank's samples in accumulation rounds."""
        config = self.config
        rank, world = rank_and_world()
        mine = slots_of(config.global_batch, rank, world)
        assert len(x0_BCHW) == len(mine) + (config.objective.mismatched_share > 0)
        return [
            Round(
                x0_BCHW[rows],
                conditioning.select(rows),
                self._mismatched(rows, mine, conditioning),
                # The student's own clock starts behind the head start, and so does its warm-up.
                draw(
                    config.seed,
                    self.step,
                    mine[rows],
                    x0_BCHW.shape[1:],
                    config.student_time,
                    config.renoise,
                    student_step=student_step,
                    near=config.objective.r1_weight > 0,
                ).to(self.device),
            )
            for rows in accumulation_rounds(config, rank, world)
        ]

    def _mismatched(
        self, rows: slice, mine: range, conditioning: Conditioning
    ) -> Mismatched | None:
        """Those among a round's samples, each under its neighbour's prompt."""
        config = self.config
        slots = mismatched_slots(config.global_batch, config.objective.mismatched_share)
        if not slots:
            return None
        chosen = [row for row in range(rows.start, rows.stop) if mine[row] in slots]
        part = (rows.stop - rows.start) / config.global_batch
        weight = len(chosen) / len(slots) / part
        # All ranks work together where the teacher is sharded: none leaves the call out.
        chosen = chosen or [rows.start]
        return Mismatched(
            [row - rows.start for row in chosen],
            conditioning.select([row + 1 for row in chosen]),
            weight,
        )

    @torch.no_grad()
    def _calibrate_heads(self, rounds: list[Round]) -> None:
        """Once, over the data of the whole first batch, at the noise levels that are drawn."""
        parts = []
        for latents, prompts, _, draws in rounds:
            sigma = draws.renoise_sigma_B
            with self.autocast():
                noised = add_noise(latents, draws.renoise_noise_BCHW, sigma)
                parts.append(channel_moments(self.teacher.features(noised, sigma, prompts)))
        moments = torch.stack(parts).sum(0)
        sum_over_ranks([moments])
        self.heads.calibrate(moments)

    def autocast(self) -> torch.autocast:
        return torch.autocast(
            self.device.type, torch.bfloat16, enabled=self.config.precision == "bfloat16"
        )

    def save(self, folder: Path) -> None:
        """Write everything that the next update depends on. Every rank calls this."""
        save_tensors(folder, self._tensors())

    def load(self, folder: Path) -> None:
        """Go on from what `save` wrote, on any number of ranks. Raises CheckpointError."""
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
        """Warms up linearly, and falls linearly at the end."""
        config = self.config
        scale = 1.0
        if config.decay_share > 0:
            falling = config.decay_share * config.steps * config.discriminator.updates_per_student
            scale = min(1.0, max(0.02, (config.total_steps - self.step) / falling))
        if config.warmup_updates > 0:
            turn = self.step - config.discriminator.head_start_steps
            done = turn // config.discriminator.updates_per_student
            scale *= min(1.0, (done + 1) / config.warmup_updates)
        return config.learning_rate * scale


def _adamw(parameters: Iterable[nn.Parameter], config: DistillConfig) -> torch.optim.Optimizer:
    """Its learning rate is set before every step."""
    return torch.optim.AdamW(
        parameters, lr=0.0, betas=config.betas, weight_decay=config.weight_decay, fused=True
    )


class HealthWatch:
    """Looks for the signs of a bad run (LADD notes): feed it each update's metrics, it returns new
    warnings. The heads' head start, when the student stands still, says nothing.
    """

    window = 50

    def __init__(self) -> None:
        self._updates: deque[dict[str, float]] = deque(maxlen=4 * self.window)
        self._said: set[str] = set()

    def observe(self, metrics: dict[str, float]) -> list[str]:
        if "student_grad_norm" not in metrics:
            return []
        self._updates.append(metrics)
        signs = {}
        real, fake, loss = (
            self._means(name) for name in ("real_logit", "fake_logit", "student_loss")
        )
        # Beyond 1 the hinge has nothing left to teach; the loss itself also holds other terms.
        if len(self._updates) >= self.window and real[-1] > 1 and fake[-1] < -1:
            signs["collapse"] = "the heads see every fake: collapse is ahead"
        rises = [after - before for before, after in pairwise(loss)]
        if len(self._updates) == self._updates.maxlen and min(rises) > 0.1:
            signs["drift"] = (
                "student loss has risen for 200 updates: the student is losing; lower the heads' "
                "rate"
            )
        new = [text for sign, text in signs.items() if sign not in self._said]
        self._said |= set(signs)
        return new

    def _means(self, name: str) -> list[float]:
        """Of each window, the latest last."""
        values = [row[name] for row in self._updates]
        ends = range(len(values), 0, -self.window)
        windows = [values[max(end - self.window, 0) : end] for end in reversed(ends)]
        return [sum(window) / len(window) for window in windows]


def diversity_warnings(student: float, teacher: float) -> list[str]:
    """Both are mean distances between pictures of one prompt; warns when the student's is below
    half.
    """
    if student >= 0.5 * teacher:
        return []
    return [f"pictures of one prompt differ {student / teacher:.0%} as much as the teacher's"]
