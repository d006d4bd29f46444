"""The optimisation loop: draw samples, step, measure, checkpoint, stop early."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from heapq import nlargest
from typing import Any

import torch

from ..data.samples import DistillationData, Sample
from ..errors import DivergedError
from ..modeling.kv import KV
from ..utils.distributed import ALONE, Ranks
from ..utils.progress import Reporter
from ..utils.resumable import sound
from ..utils.values import require
from .checkpoint import Checkpoint, mark_diverged
from .distractors import ISOLATED, Distractor, Distractors, draw_distractors
from .loss import step_loss, stream_weights, validation
from .optimizers import build_optimizer
from .settings import ExecutionSettings, TrainingSettings
from .trainable import TrainableMemory

Curve = list[dict[str, float]]
# What is kept of a memory, and the measurements so far.
OnBetter = Callable[[dict[str, torch.Tensor], Curve], None]


class Trainer:
    """Steps with linear decay on the memory's parameters; keeps the state that is best over all streams.

    Every random draw depends on the seed and the step alone, so a resumed run repeats an uninterrupted one bit by bit.
    """

    def __init__(
        self,
        memory: TrainableMemory,
        data: DistillationData,
        training: TrainingSettings,
        execution: ExecutionSettings,
        seed: int,
        checkpoint: Checkpoint | None = None,
        ranks: Ranks = ALONE,
        start: KV | None = None,
        on_better: OnBetter | None = None,
        distractors: Sequence[Distractor] = (),
    ):
        self.on_better, self.distractors = on_better, distractors
        self.memory, self.data, self.training, self.execution, self.seed = memory, data, training, execution, seed
        self.checkpoint, self.ranks, self.goes_on = checkpoint, ranks, start is not None
        memory.initialize()
        if start is not None:
            memory.start_from(start)
        groups = memory.all_groups(training)
        self.optimizers = [build_optimizer(momentum=training.momentum, **group) for group in groups]
        self._optimizer_of = {
            parameter: optimizer
            for group, optimizer in zip(groups, self.optimizers, strict=True)
            for parameter in group["params"]
        }
        self.parameters = list(self._optimizer_of)
        self.pools = self._pools()
        self.step, self.seconds, self._updating = 0, 0.0, False
        self.curve: Curve = []
        self.best = [parameter.detach().clone() for parameter in self.parameters]
        self.best_loss = self.best_kl = math.inf
        self.stale = 0
        self._resume()

    def run(self, reporter: Reporter, checkpoint_every: int) -> dict[str, torch.Tensor]:
        """Train to the end, or to an early stop; returns the memory's ``tensors`` in its best state.

        Raises:
            DivergedError: the loss, the held-out KL, or what is kept became NaN or infinite.
        """
        try:
            return self._run(reporter, checkpoint_every)
        except DivergedError:
            if self.checkpoint and self.ranks.main:
                mark_diverged(self.checkpoint.folder)
            raise

    def _run(self, reporter: Reporter, checkpoint_every: int) -> dict[str, torch.Tensor]:
        reporter.start("compiling", self.training.steps, self.step)
        if self.goes_on and not self.step and self.data.held_out:
            self.measure()
        try:
            while self.step < self.training.steps and not self._stale():
                loss = self.advance()
                if self.step % self.training.evaluate_every == 0 or self.step == self.training.steps:
                    self.measure(loss)
                reporter.step(self.step, loss, self.best_kl)
                if self.checkpoint and self.step % checkpoint_every == 0:
                    self.save()
        except KeyboardInterrupt:
            if not self._updating:
                self.save()
            raise
        self.save()
        with torch.no_grad():
            for parameter, best in zip(self.parameters, self.best, strict=True):
                parameter.copy_(best)
        return self._kept()

    def _kept(self) -> dict[str, torch.Tensor]:
        with torch.no_grad():
            tensors = self.memory.tensors()
        for name, tensor in tensors.items():
            self._require_finite(f"largest of the {name}", tensor.abs().max().item())
        return tensors

    def advance(self) -> float:
        """One optimiser step; returns its loss."""
        began = time.monotonic()
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * (1 - self.step / self.training.steps)
        value, gradients = self._gradients()
        self._require_finite("loss", value)
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            parameter.grad = gradient
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        # An interrupt in here would leave some parameters a step ahead of the others.
        self._updating = True
        for optimizer in self.optimizers:
            optimizer.step()
        self.step += 1
        self._updating = False
        self.seconds += time.monotonic() - began
        return value

    def _gradients(self) -> tuple[float, list[torch.Tensor]]:
        """The step's loss and gradients, over all processes."""
        distractors = self._draw_distractors()
        drawn = [*self._draw(), *distractors.asked]
        loss = step_loss(self.memory, self.ranks.share(drawn), self.training, self.execution, drawn, distractors)
        # The last layer's other projections receive no gradient: ask for zeros.
        gradients = torch.autograd.grad(loss, self.parameters, materialize_grads=True)
        total, *summed = self.ranks.sum([loss.detach(), *gradients])
        return total.item(), summed

    def _pools(self) -> dict[str, list[Sample]]:
        """The query samples of each stream that has any, and a weight."""
        weights = stream_weights(self.training)
        pools = {
            stream: [sample for sample in self.data.train if sample.stream == stream]
            for stream in ("general", "self_study", "across", "rehearsal")
        }
        return {stream: pool for stream, pool in pools.items() if pool and weights[stream]}

    def _draw(self) -> list[Sample]:
        """Of each part of the text a piece of the reconstruction, and ``batch`` queries shared among their streams."""
        rng = random.Random(f"{self.seed} {self.step}")
        weights = stream_weights(self.training)
        total = sum(weights[stream] for stream in self.pools)
        parts = len(self.memory.context.parts)
        drawn = self._pieces(parts) if weights["reconstruction"] else []
        for stream, pool in self.pools.items():
            count = min(len(pool), max(1, round(parts * self.training.samples * weights[stream] / total)))
            drawn += draw_samples(pool, count, rng)
        return drawn

    def _pieces(self, count: int) -> list[Sample]:
        """The pieces to repeat in this step: each once, in a new order, before any comes again."""
        pieces = self.data.reconstruction
        numbered = [divmod(number, len(pieces)) for number in range(count * self.step, count * (self.step + 1))]
        orders = {
            turn: random.Random(f"{self.seed} repetition {turn}").sample(pieces, len(pieces)) for turn, _ in numbered
        }
        return [orders[turn][place] for turn, place in numbered]

    def _draw_distractors(self) -> Distractors:
        """Those of this step."""
        rng = random.Random(f"{self.seed} distractors {self.step}")
        if not self.distractors or rng.random() < self.training.isolated_share:
            return ISOLATED
        return draw_distractors(self.distractors, self.training, rng)

    def measure(self, loss: float = math.inf) -> None:
        """Append to the curve, and keep this state if it is the best so far; before any step there is no ``loss``."""
        kl = chosen_by = loss
        if held_out := self.data.held_out:
            kl, chosen_by = self.ranks.first(self._validation())
        loss = loss if self.step else chosen_by
        self._require_finite("held-out KL", kl)
        self.curve.append({"step": self.step, "loss": loss, "held_out_kl": kl, "seconds": round(self.seconds, 3)})
        self.stale += 1
        if chosen_by < self.best_loss or not held_out or not self.training.patience:
            self.best_loss, self.best_kl, self.stale = chosen_by, kl, 0
            self.best = [parameter.detach().clone() for parameter in self.parameters]
            if self.on_better and self.step:
                self.on_better(self._kept(), list(self.curve))

    def _validation(self) -> tuple[float, float]:
        """Held-out KL of the memory alone, and the loss by which states are chosen: alone, and among distractors."""

        def measured(distractors: Distractors) -> tuple[float, float]:
            data, settings = self.data, (self.training, self.execution)
            return validation(self.memory, data.reconstruction, data.held_out, *settings, distractors)

        kl, alone = measured(ISOLATED)
        share = self.training.isolated_share
        if not self.distractors or share == 1:
            return kl, alone
        # The same in every measurement.
        rng = random.Random(f"{self.seed} distractors")
        _, among = measured(draw_distractors(self.distractors, self.training, rng))
        return kl, share * alone + (1 - share) * among

    def _stale(self) -> bool:
        return 0 < self.training.patience <= self.stale

    def _require_finite(self, what: str, value: float) -> None:
        """Check that the run is on its way.

        Raises:
            DivergedError: it is not.
        """
        if not math.isfinite(value):
            kept = f"the checkpoint in {self.checkpoint.folder} stands" if self.checkpoint else "no checkpoint was kept"
            raise DivergedError(
                f"the {what} became {value} at step {self.step}; {kept}: lower learning_rate and buffer_learning_rate "
                "and compile again"
            )

    def save(self) -> None:
        """Write the checkpoint, if one is kept."""
        if self.checkpoint is None:
            return
        tensors = {"best." + str(index): tensor for index, tensor in enumerate(self.best)}
        for index, parameter in enumerate(self.parameters):
            tensors[f"parameter.{index}"] = parameter
            for name, value in self._state_of(parameter).items():
                tensors[f"optimizer.{index}.{name}"] = value
        # JSON has no infinity: None stands for "not measured yet".
        best = {"best_loss": self.best_loss, "best_kl": self.best_kl}
        # Saved because auto picked it from free memory: another chunk size rounds differently.
        counters: dict[str, Any] = {"encode_chunk": self.execution.encode_chunk}
        counters |= {name: None if math.isinf(value) else value for name, value in best.items()}
        counters |= {"step": self.step, "stale": self.stale}
        self.checkpoint.save(tensors, counters | {"curve": self.curve, "seconds": self.seconds})

    def _resume(self) -> None:
        stored = self.checkpoint.load() if self.checkpoint else None
        if self.checkpoint is None or stored is None:
            return
        with sound(self.checkpoint.folder):
            self._check(stored[0])
            self._restore(*stored)

    def _restore(self, tensors: dict[str, torch.Tensor], metadata: dict[str, Any]) -> None:
        """Go on from what ``save`` wrote."""
        self.execution = replace(self.execution, encode_chunk=metadata["encode_chunk"])
        self.step, self.stale, self.seconds = metadata["step"], metadata["stale"], metadata["seconds"]
        self.curve = metadata["curve"]
        self.best_loss, self.best_kl = (
            math.inf if metadata[name] is None else metadata[name] for name in ("best_loss", "best_kl")
        )
        with torch.no_grad():
            for index, parameter in enumerate(self.parameters):
                parameter.copy_(tensors[f"parameter.{index}"])
                self.best[index].copy_(tensors[f"best.{index}"])
                prefix = f"optimizer.{index}."
                state = {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
                self._state_of(parameter).update(
                    {name: value if name == "step" else value.to(parameter.device) for name, value in state.items()}
                )

    def _check(self, tensors: dict[str, torch.Tensor]) -> None:
        """Refuse a state of other parameters."""
        for index, parameter in enumerate(self.parameters):
            required = {name: tensors[name] for name in (f"parameter.{index}", f"best.{index}")}
            remembered = {name: t for name, t in tensors.items() if name.startswith(f"optimizer.{index}.") and t.ndim}
            for name, tensor in (required | remembered).items():
                require(tensor.shape == parameter.shape, name, tuple(tensor.shape), f"{tuple(parameter.shape)}")

    def _state_of(self, parameter: torch.nn.Parameter) -> dict[str, torch.Tensor]:
        """What the parameter's optimizer remembers of it; empty before its first step."""
        return self._optimizer_of[parameter].state[parameter]


def draw_samples(pool: Sequence[Sample], count: int, rng: random.Random) -> list[Sample]:
    """``count`` distinct samples, drawn by their weights.

    As in Efraimidis and Spirakis, Weighted random sampling with a reservoir, 2006.
    """
    return nlargest(count, pool, key=lambda sample: rng.random() ** (1 / sample.weight))
