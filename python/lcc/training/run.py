"""The loop: memories that are trained together take turns; checkpoints, interrupts, and what is said of it."""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter

import torch

from ..errors import DivergedError
from ..utils.progress import Reporter
from ..utils.resumable import sound
from ..utils.values import require
from .checkpoint import Checkpoint, mark_diverged
from .trainer import Trainer


class TrainingRun:
    """The trainers of one compilation. The one with the fewest steps has the next turn.

    Args:
        checkpoint: where their states are kept, in one file, and found after a kill.
    """

    def __init__(self, trainers: Sequence[Trainer], checkpoint: Checkpoint | None = None):
        self.trainers, self.checkpoint = trainers, checkpoint
        self._resume()

    def finish(self, reporter: Reporter, checkpoint_every: int) -> list[dict[str, torch.Tensor]]:
        """Train all to the end, or to an early stop; returns the ``tensors`` of each memory in its best state.

        Raises:
            DivergedError: the loss, the held-out KL, or what is kept became NaN or infinite.
        """
        try:
            self._turns(reporter, checkpoint_every)
            return [trainer.kept() for trainer in self.trainers]
        except DivergedError as error:
            if self.checkpoint and self.trainers[0].ranks.main:
                mark_diverged(self.checkpoint.folder)
            kept = f"the checkpoint in {self.checkpoint.folder} stands" if self.checkpoint else "no checkpoint was kept"
            raise DivergedError(
                f"{error}; {kept}: lower learning_rate and buffer_learning_rate and compile again"
            ) from error

    def save(self) -> None:
        """Write the checkpoint, if one is kept."""
        if self.checkpoint is None:
            return
        states = [trainer.state() for trainer in self.trainers]
        tensors = {f"{number}.{name}": t for number, (own, _) in enumerate(states) for name, t in own.items()}
        self.checkpoint.save(tensors, {"memories": [counters for _, counters in states]})

    def _turns(self, reporter: Reporter, checkpoint_every: int) -> None:
        steps = sum(trainer.training.steps for trainer in self.trainers)
        reporter.start("compiling", steps, sum(trainer.step for trainer in self.trainers))
        try:
            while active := [trainer for trainer in self.trainers if not trainer.finished]:
                trainer = min(active, key=attrgetter("step"))
                loss = trainer.turn()
                reporter.step(sum(one.step for one in self.trainers), loss, trainer.best_kl)
                if trainer is active[-1] and trainer.step % checkpoint_every == 0:
                    self.save()
        except KeyboardInterrupt:
            if not any(trainer.updating for trainer in self.trainers):
                self.save()
            raise
        self.save()

    def _resume(self) -> None:
        stored = self.checkpoint.load() if self.checkpoint else None
        if self.checkpoint is None or stored is None:
            return
        tensors, metadata = stored
        with sound(self.checkpoint.folder):
            require(len(metadata["memories"]) == len(self.trainers), "memories", len(metadata["memories"]), "all")
            for number, (trainer, counters) in enumerate(zip(self.trainers, metadata["memories"], strict=True)):
                prefix = f"{number}."
                own = {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
                trainer.restore(own, counters)
