"""Trainer for preference tuning: its state, an update, and a look (evaluation) on held-out pairs.

Pure torch; the caller reads data and saves. Resuming is exact: all randomness comes from seed, step
and slot. With F one forward pass, a pair costs 2F for the reference and 4F for the net, whose base
weights are frozen. Legend in `dpo_loss.py`.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from schemas.config import DpoConfig
from stages.ladd.backbone import Backbone, Conditioning
from stages.ladd.batch_plan import accumulation_rounds, slots_of
from stages.ladd.checkpoint import (
    begin_optimizer,
    load_tensors,
    names_in,
    optimizer_tensors,
    save_tensors,
)
from stages.ladd.dpo_loss import (
    PairDraws,
    PairErrors,
    draw_pairs,
    pair_errors,
    preference_loss,
    preference_margin,
)
from stages.ladd.health import SKIPPED, Sign, TrainingDiverged, not_finite
from stages.ladd.parallel import clip_gradients, rank_and_world, sum_over_ranks
from stages.ladd.precision import autocast

Pairs = tuple[Tensor, Tensor, Conditioning]
"""Latents of winners and of losers (P, C, H, W), and the conditioning of their prompts."""

PASSES = 6
"""Forward passes of the transformer that an update costs for each pair, as counted above."""

_MEASURES = (
    "loss",
    "winner_error",
    "loser_error",
    "winner_reference_error",
    "loser_reference_error",
    "margin",
    "accuracy",
)


class DpoTrainer:
    """Trains the adapters of a backbone on `device`: all its parameters that require gradients.

    `reference` is `net` without them. `levels` are the noise levels to train on; None means SD3's
    with the configuration's shift, none if it is empty. `best` holds the adapters of the best look
    so far.
    """

    def __init__(
        self,
        net: Backbone,
        reference: Backbone,
        config: DpoConfig,
        device: torch.device,
        levels: Sequence[float] | None = None,
    ) -> None:
        self.net, self.reference, self.config, self.device = net, reference, config, device
        self.levels = levels
        self.adapters = {name: p for name, p in net.named_parameters() if p.requires_grad}
        self.best = {name: p.detach().clone() for name, p in self.adapters.items()}
        self.best_loss, self.best_step, self.misses = math.inf, 0, 0
        self.optimizer = torch.optim.AdamW(
            self.adapters.values(), lr=config.learning_rate, weight_decay=0.0, fused=True
        )
        self.step = 0
        self._reference_errors: dict[range, PairErrors] = {}

    @property
    def stopped_early(self) -> bool:
        """Whether the held-out loss has not fallen in the last `patience` looks."""
        return self.misses >= self.config.patience

    @property
    def done(self) -> bool:
        return self.stopped_early or self.step >= self.config.steps

    def update(
        self, winners_PCHW: Tensor, losers_PCHW: Tensor, conditioning: Conditioning
    ) -> dict[str, float]:
        """Train on this rank's share of the global batch; returns metrics of the whole batch.

        Where a loss or a gradient is not finite, on all ranks alike, the update is `skipped`:
        adapters and moments stay as they are.
        """
        config = self.config
        rank, world = rank_and_world()
        mine = slots_of(config.global_batch, rank, world)
        assert len(winners_PCHW) == len(losers_PCHW) == len(mine)
        sums = torch.zeros(len(_MEASURES), device=self.device)
        for rows in accumulation_rounds(config, rank, world):
            slots = mine[rows]
            pairs = self._placed(winners_PCHW[rows], losers_PCHW[rows], conditioning.select(rows))
            draws = self._draw(self.step, slots, pairs)
            reference = self._reference(pairs, draws)
            with self.autocast():
                errors = pair_errors(self.net, *pairs, draws)
            margin_P = preference_margin(errors, reference, config.beta)
            (preference_loss(margin_P) * (len(slots) / config.global_batch)).backward()
            sums += _measured(errors.detach(), reference, margin_P.detach()) / config.global_batch
        sum_over_ranks([sums])
        metrics = dict(zip(_MEASURES, sums.tolist(), strict=True))
        metrics["grad_norm"] = clip_gradients(self.net, config.clip_norm)
        if not_finite(metrics):
            metrics[SKIPPED] = 1.0
        else:
            for group in self.optimizer.param_groups:
                warm = (self.step + 1) / config.warmup_updates if config.warmup_updates else 1.0
                group["lr"] = config.learning_rate * min(1.0, warm)
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        return metrics

    @torch.no_grad()
    def look(self, batches: Iterable[tuple[range, Pairs]]) -> dict[str, float]:
        """Evaluate the adapters on this rank's held-out pairs; returns metrics over all ranks'
        pairs, named `held_out_*`. Raises TrainingDiverged when one is not finite.

        A slot gets the same noise at every look, so looks are comparable. Keeps the best adapters
        so far in `best`, and counts the looks since then in `misses`.
        """
        self.net.eval()
        sums = torch.zeros(len(_MEASURES) + 1, device=self.device)
        for slots, batch in batches:
            pairs = self._placed(*batch)
            draws = self._draw("look", slots, pairs)
            if slots not in self._reference_errors:
                self._reference_errors[slots] = self._reference(pairs, draws)
            reference = self._reference_errors[slots]
            with self.autocast():
                errors = pair_errors(self.net, *pairs, draws)
            margin_P = preference_margin(errors, reference, self.config.beta)
            sums[:-1] += _measured(errors, reference, margin_P)
            sums[-1] += len(slots)
        self.net.train()
        sum_over_ranks([sums])
        *totals, count = sums.tolist()
        assert count > 0, "a look needs held-out pairs"
        metrics = {
            f"held_out_{name}": total / count for name, total in zip(_MEASURES, totals, strict=True)
        }
        if lost := not_finite(metrics):
            raise TrainingDiverged(f"update {self.step}: {lost[0]} is not a finite number")
        if metrics["held_out_loss"] < self.best_loss:
            self.best_loss, self.best_step, self.misses = (
                metrics["held_out_loss"],
                self.step,
                0,
            )
            for name, adapter in self.adapters.items():
                self.best[name].copy_(adapter)
        else:
            self.misses += 1
        return metrics

    @property
    def rates(self) -> dict[str, float]:
        """The learning rate of the latest update."""
        return {"learning_rate": self.optimizer.param_groups[0]["lr"]}

    @torch.no_grad()
    def take_best(self) -> None:
        """Put the adapters of the best look on the net. Without a look it keeps its latest ones."""
        if self.best_loss < math.inf:
            for name, adapter in self.adapters.items():
                adapter.copy_(self.best[name])

    def autocast(self) -> torch.autocast:
        return autocast(self.device, enabled=self.config.precision == "bfloat16")

    def save(self, folder: Path) -> None:
        """Write all state that the next update depends on. Every rank calls this."""
        save_tensors(folder, self._tensors())

    def load(self, folder: Path) -> None:
        """Restore the state that `save` wrote, on any number of ranks. Raises CheckpointError."""
        prefix = "optimizer."
        names = {n.removeprefix(prefix) for n in names_in(folder) if n.startswith(prefix)}
        begin_optimizer(self.net, self.optimizer, names)
        tensors = self._tensors()
        load_tensors(folder, tensors)
        self.step, self.best_step, self.misses = (
            int(tensors[name]) for name in ("step", "best_step", "misses")
        )
        self.best_loss = float(tensors["best_loss"])

    def _tensors(self) -> dict[str, Tensor]:
        tensors = {
            "step": torch.tensor(self.step),
            "best_loss": torch.tensor(self.best_loss, dtype=torch.float64),
            "best_step": torch.tensor(self.best_step),
            "misses": torch.tensor(self.misses),
        }
        for part, named in (
            ("adapters", self.adapters),
            ("best", self.best),
            ("optimizer", optimizer_tensors(self.net, self.optimizer)),
        ):
            tensors |= {f"{part}.{name}": value for name, value in named.items()}
        return tensors

    def _placed(self, winners: Tensor, losers: Tensor, conditioning: Conditioning) -> Pairs:
        return winners.to(self.device), losers.to(self.device), conditioning.to(self.device)

    def _draw(self, step: int | str, slots: range, pairs: Pairs) -> PairDraws:
        shape, shift = pairs[0].shape[1:], self.config.shift or 1.0
        draws = draw_pairs(self.config.seed, step, slots, shape, self.levels, shift=shift)
        return draws.to(self.device)

    @torch.no_grad()
    def _reference(self, pairs: Pairs, draws: PairDraws) -> PairErrors:
        with self.autocast():
            return pair_errors(self.reference, *pairs, draws)


def _measured(errors: PairErrors, reference: PairErrors, margin_P: Tensor) -> Tensor:
    """Sums over pairs, in the order of `_MEASURES`. A margin of 0 counts as half accurate."""
    prefers = (margin_P > 0).float() + 0.5 * (margin_P == 0).float()
    return torch.stack(
        [
            preference_loss(margin_P) * len(margin_P),
            errors.winner_P.sum(),
            errors.loser_P.sum(),
            reference.winner_P.sum(),
            reference.loser_P.sum(),
            margin_P.sum(),
            prefers.sum(),
        ]
    )


class TuningWatch:
    """Detects known failures of preference tuning, see `docs/health.md`. `observe` takes each
    update's metrics and returns the signs that are new. Skipped updates are ignored.
    """

    window = 50

    def __init__(self) -> None:
        self._rows: deque[dict[str, float]] = deque(maxlen=self.window)
        self._said: set[str] = set()

    def observe(self, metrics: dict[str, float]) -> list[Sign]:
        if "loss" not in metrics:
            return []
        signs = {}
        if len(self._rows) == self.window:
            usual = self._mean("loss")
            if metrics["loss"] > 1 and metrics["loss"] > 4 * usual:
                signs["spike"] = (
                    f"the loss jumped to {metrics['loss']:.2f} from about {usual:.2f}; lower "
                    "dpo.learning_rate if it stays high"
                )
        self._rows.append(metrics)
        if len(self._rows) == self.window:
            grown = [
                self._mean(f"{side}_error") / self._mean(f"{side}_reference_error")
                for side in ("winner", "loser")
            ]
            if min(grown) > 1.05:
                signs["forgetting"] = (
                    f"errors on winners and losers grow together (to {grown[0]:.0%} and "
                    f"{grown[1]:.0%} of the reference's): the net is forgetting; raise dpo.beta or "
                    "lower dpo.learning_rate"
                )
        new = [Sign(name, text) for name, text in signs.items() if name not in self._said]
        self._said |= set(signs)
        return new

    def _mean(self, name: str) -> float:
        return sum(row[name] for row in self._rows) / len(self._rows)
