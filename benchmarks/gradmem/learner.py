"""A small Llama that is trained together with the start of its memory, as GradMem trains it."""

from __future__ import annotations

import random
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.gradmem.pairs import ASKING, LENGTH, VOCABULARY, Batch, draw
from lcc.compilers.gradmem.attention import NAME
from lcc.compilers.gradmem.writing import GradMode, Tensors, Written, no_prefix, predictions, token_losses, write
from lcc.utils.tensor_files import load_tensors, save_tensors

# Of the start, as the official code draws it.
SPREAD = 0.02
STATE_FORMAT = "gradmem-bench-1"


@dataclass(frozen=True)
class Arm:
    """One training.

    Attributes:
        grad_mode: see ``write``.
        writes: K.
        rate: step size of a write.
        text_weight: of the last write's loss in the training loss; the official script for this task has 0.5.
        learning_rate: of Adam, after ``warmup`` steps.
    """

    grad_mode: GradMode
    writes: int
    seed: int
    rate: float = 0.4
    text_weight: float = 0.5
    learning_rate: float = 1e-3
    warmup: int = 200
    batch: int = 64
    memory_tokens: int = 8


class Learner:
    """The model, the start and their optimiser.

    The model has the paper's size: 4 layers of width 128, 4 heads, an MLP four times as wide.
    """

    def __init__(self, arm: Arm):
        torch.manual_seed(arm.seed)
        self.arm, self.steps = arm, 0
        config = LlamaConfig(
            vocab_size=len(VOCABULARY),
            hidden_size=128,
            intermediate_size=512,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=512,
        )
        self.model = LlamaForCausalLM(config)
        self.model.config._attn_implementation = NAME
        self.start = torch.nn.Parameter(SPREAD * torch.randn(arm.memory_tokens, config.hidden_size))
        self.parameters = [*self.model.parameters(), self.start]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=arm.learning_rate, weight_decay=0.0)

    def written(self, texts: torch.Tensor, grad_mode: GradMode) -> Written:
        """The memories of ``texts``."""
        start = {"embeddings": self.start.expand(len(texts), -1, -1)}
        counted = torch.ones_like(texts, dtype=torch.bool)
        rates = [self.arm.rate] * self.arm.writes
        return write(self.model, no_prefix(self.model), start, texts, counted, rates, grad_mode)

    def step(self, pairs: int) -> float:
        """One update on a fresh batch, drawn from a seed of its own; returns the answers' loss."""
        self.steps += 1
        batch = draw(random.Random(f"{self.arm.seed} {self.steps}"), pairs, self.arm.batch)
        written = self.written(batch.texts, self.arm.grad_mode)
        loss = self._read(written.memory, batch)
        (loss + self.arm.text_weight * written.losses[-1].mean()).backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.param_groups[0]["lr"] = self.arm.learning_rate * min(1.0, self.steps / self.arm.warmup)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.item()

    def save(self, path: Path, told: dict[str, Any]) -> None:
        """Write all that the training depends on, and what is ``told`` of it so far."""
        tensors = {}
        for number, parameter in enumerate(self.parameters):
            state = self.optimizer.state[parameter] | {"parameter": parameter}
            tensors |= {f"{name} {number}": tensor for name, tensor in state.items()}
        save_tensors(path, STATE_FORMAT, tensors, {"steps": self.steps, "told": told, "arm": asdict(self.arm)})

    def load(self, path: Path) -> dict[str, Any]:
        """Go on from what ``save`` wrote; returns what was told.

        Raises:
            ValueError: it is of another arm.
        """
        tensors, metadata = load_tensors(path, STATE_FORMAT)
        if metadata["arm"] != asdict(self.arm):
            raise ValueError(f"{path} is of another training: finish it with its own options, or delete it")
        self.steps = metadata["steps"]
        for number, parameter in enumerate(self.parameters):
            own = {name.split()[0]: tensor for name, tensor in tensors.items() if name.split()[1] == str(number)}
            parameter.data.copy_(own.pop("parameter"))
            self.optimizer.state[parameter] = own
        return metadata["told"]

    def _read(self, memory: Tensors, batch: Batch) -> torch.Tensor:
        return token_losses(self.model, no_prefix(self.model), memory, batch.reads, batch.answers).mean()

    def exact(self, pairs: int, samples: int) -> float:
        """Share of fresh contexts whose value is answered exactly, by greedy decoding."""
        batch = draw(random.Random(f"exam {self.arm.seed}"), pairs, samples)
        memory = self.written(batch.texts, "none").memory
        with torch.no_grad():
            logits = predictions(self.model, no_prefix(self.model), memory, batch.reads)
        value = slice(ASKING, ASKING + LENGTH)
        # Given the right first symbol, the second is what greedy decoding goes on with.
        return (logits.argmax(-1)[:, value] == batch.reads[:, value]).all(1).float().mean().item()
