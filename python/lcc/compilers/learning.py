"""The training of what a compiler learns for a model, once for all texts. It goes on where it was stopped."""

from __future__ import annotations

import math
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from transformers import PreTrainedModel

from ..errors import DivergedError, MismatchError
from ..modeling.fingerprint import config_digest, model_digests
from ..utils.outputs import is_file
from ..utils.resumable import differing_names, sound
from ..utils.tensor_files import load_tensors, save_tensors

Show = Callable[[dict[str, float]], None]


def is_for(path: str | os.PathLike, file_format: str, model: PreTrainedModel) -> bool:
    """Whether a learned file is for ``model``; a model of another config is not read through.

    Raises:
        MemoryFileError: no such file, or one that is damaged or of another format.
    """
    wanted = load_tensors(path, file_format)[1]["model"]
    return wanted["model_config"] == config_digest(model) and wanted == model_digests(model)


class Learning(ABC):
    """Updates with a warm-up and linear decay, measured every so often; a file has what was best.

    Attributes:
        state_format: of the file from which an unfinished training goes on.
        parameters: what is trained, by name.
        optimizers: each of them has some of the parameters.
        settings: has ``steps``, ``warmup``, ``learning_rate`` and ``evaluate_every``.
        out: the file to write.
        identity: what two trainings must have in common for one to go on from the other's state, JSON-ready.
        step: updates so far.
        seconds: that they took.
        curve: measurements.
        best: the least figure by which a measurement was judged.
    """

    state_format: ClassVar[str]

    def __init__(
        self,
        parameters: Mapping[str, torch.Tensor],
        optimizers: Sequence[torch.optim.Optimizer],
        settings: Any,
        out: Path,
        identity: dict[str, Any],
    ):
        self.parameters, self.optimizers = dict(parameters), optimizers
        self.settings, self.out, self.identity = settings, out, identity
        self.step, self.seconds, self.best = 0, 0.0, math.inf
        self.curve: list[dict[str, float]] = []
        self._optimizer_of = {
            parameter: optimizer
            for optimizer in optimizers
            for group in optimizer.param_groups
            for parameter in group["params"]
        }

    @abstractmethod
    def backward(self) -> None:
        """Leave in the parameters the gradients of the update number ``step``."""

    @abstractmethod
    def measure(self) -> tuple[float, dict[str, float]]:
        """The figure that the best state has the least of, in nats a token, and all figures for the curve."""

    @abstractmethod
    def keep(self) -> None:
        """Write ``out``."""

    @property
    def state(self) -> Path:
        """Where an unfinished training is kept."""
        return self.out.with_name(f"{self.out.name}.unfinished")

    def run(self, show: Show) -> float:
        """Train to the end, or on from where a killed training stopped.

        The file has what was best on the held-out texts, from the first measurement on.

        Args:
            show: called with each measurement.

        Returns:
            The figure of the best, in nats a token.

        Raises:
            DivergedError: the loss became NaN or infinite; the file and the state stand.
            MemoryFileError, MismatchError: the state cannot be read, or is another training's.
        """
        self._resume()
        if not self.curve:
            self._measure(show)
        while self.step < self.settings.steps:
            began = time.monotonic()
            self.update()
            self.seconds += time.monotonic() - began
            if self.step % self.settings.evaluate_every == 0 or self.step == self.settings.steps:
                self._measure(show)
        self.state.unlink(missing_ok=True)
        return self.best

    def update(self) -> None:
        """One update."""
        self.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters.values(), 1.0)
        warm, left = min(1.0, (self.step + 1) / self.settings.warmup), 1 - self.step / self.settings.steps
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = self.settings.learning_rate * warm * left
            optimizer.step()
            optimizer.zero_grad()
        self.step += 1

    def _measure(self, show: Show) -> None:
        """Measure, and keep what is best, and the state."""
        judged_by, figures = self.measure()
        if not math.isfinite(judged_by):
            raise DivergedError(f"the loss is {judged_by} after {self.step} updates: take a smaller learning rate")
        self.curve.append({"step": self.step, **figures, "seconds": round(self.seconds, 1)})
        if judged_by < self.best:
            self.best = judged_by
            self.keep()
        self._save()
        show(self.curve[-1])

    def _save(self) -> None:
        tensors: dict[str, torch.Tensor] = {}
        for name, parameter in self.parameters.items():
            tensors[f"parameter {name}"] = parameter
            tensors |= {f"{key} {name}": value for key, value in self._remembered(parameter).items()}
        metadata = {"step": self.step, "seconds": self.seconds, "curve": self.curve, "best": self.best}
        save_tensors(self.state, self.state_format, tensors, metadata | {"identity": self.identity})

    def _resume(self) -> None:
        if not is_file(self.state):
            return
        tensors, metadata = load_tensors(self.state, self.state_format)
        with sound(self.state):
            if differing := differing_names(metadata["identity"], self.identity):
                raise MismatchError(
                    f"{self.state} is of a training that differs in {', '.join(differing)}: finish that one with its "
                    "own options, or delete the file"
                )
            self.step, self.seconds = metadata["step"], metadata["seconds"]
            self.curve, self.best = metadata["curve"], metadata["best"]
            for name, parameter in self.parameters.items():
                with torch.no_grad():
                    parameter.copy_(tensors.pop(f"parameter {name}"))
                own = [key for key in tensors if key.split(" ", 1)[1] == name]
                self._remembered(parameter).update((key.split(" ", 1)[0], tensors[key]) for key in own)

    def _remembered(self, parameter: torch.Tensor) -> dict[str, torch.Tensor]:
        """What the parameter's optimizer remembers of it; writes through."""
        return self._optimizer_of[parameter].state[parameter]
