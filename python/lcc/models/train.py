"""Train the embedded model from nothing: ``python -m lcc.models.train --out DIR`` (under an hour on two cores).

The curriculum: copy random words until copying circuits stand, then documents whose people have one, two and four
attributes, then full documents under a decaying learning rate. A stage ends when its accuracy is reached.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from .lessons import IGNORED, KINDS, Batch, Lesson, Packer, closed_book_lesson, copying_lesson, document_lesson
from .tokenizer import build_tokenizer

MUON_LR, ADAMW_LR, WARMUP_STEPS = 0.02, 3e-3, 40


@dataclass(frozen=True)
class Stage:
    """Up to ``steps`` batches from ``lessons``; ends early once ``goal`` (a kind) reaches ``accuracy``."""

    name: str
    steps: int
    goal: str
    accuracy: float
    lessons: Callable[[random.Random], list[Lesson]]
    decays: bool = False


def _copying(rng: random.Random) -> list[Lesson]:
    return [copying_lesson(rng, rng.randint(16, 64)) for _ in range(32)]


def _documents(rows: int, people: tuple[int, int], attributes: tuple[int, int]) -> Callable:
    """Batches of same-sized documents, one text of random words to copy and one closed-book lesson in each."""

    def draw(rng: random.Random) -> list[Lesson]:
        shape = rng.randint(*people), rng.randint(*attributes)
        documents = [document_lesson(rng, *shape, repeat=index % 4 == 0) for index in range(rows)]
        return [*documents, copying_lesson(rng, rng.randint(16, 96)), closed_book_lesson(rng)]

    return draw


def curriculum(scale: float = 1.0) -> tuple[Stage, ...]:
    """The stages; ``scale`` shortens or lengthens the last one."""
    return (
        Stage("copy", 900, "repeat", 0.97, _copying),
        Stage("1 attribute", 600, "question", 0.95, _documents(24, (3, 6), (1, 1))),
        Stage("2 attributes", 500, "question", 0.95, _documents(16, (3, 6), (2, 2))),
        Stage("4 attributes", 400, "question", 0.95, _documents(10, (4, 7), (3, 5))),
        Stage("documents", int(1500 * scale), "question", 2.0, _documents(8, (5, 8), (6, 8)), decays=True),
    )


def build_model(tokenizer: PreTrainedTokenizerBase) -> LlamaForCausalLM:
    """A 1.1 M-parameter Llama."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


def build_optimizers(model: LlamaForCausalLM) -> list[torch.optim.Optimizer]:
    """Muon for the layers' matrices, AdamW for embeddings and norms."""
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    others = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    return [torch.optim.Muon(matrices, lr=MUON_LR), torch.optim.AdamW(others, lr=ADAMW_LR, weight_decay=0.0)]


def step_loss(model: LlamaForCausalLM, batch: Batch, end: int) -> tuple[torch.Tensor, dict[str, float]]:
    """Weighted mean cross-entropy of the supervised tokens, and token accuracy (end tokens left out) by kind."""
    hidden = model.model(
        input_ids=batch.input_ids, attention_mask=batch.visible, position_ids=batch.position_ids
    ).last_hidden_state
    chosen = batch.labels != IGNORED
    logits, labels, weights = model.lm_head(hidden[chosen]), batch.labels[chosen], batch.weights[chosen]
    loss = (cross_entropy(logits, labels, reduction="none") * weights).sum() / weights.sum()
    right, kinds, content = logits.argmax(-1) == labels, batch.kinds[chosen], labels != end
    accuracy = {}
    for index, kind in enumerate(KINDS):
        mine = right[(kinds == index) & content]
        if len(mine):
            accuracy[kind] = mine.float().mean().item()
    return loss, accuracy


class Trainer:
    """Runs the curriculum, one log row every ``log_every`` steps."""

    def __init__(self, out: Path, seed: int, log_every: int = 20):
        torch.manual_seed(seed)
        self.out, self.rng, self.log_every = out, random.Random(seed), log_every
        self.tokenizer = build_tokenizer()
        self.packer = Packer(self.tokenizer)
        self.model = build_model(self.tokenizer)
        self.optimizers = build_optimizers(self.model)
        self.step, self.start = 0, time.monotonic()
        out.mkdir(parents=True, exist_ok=True)
        self.log = (out / "training_log.jsonl").open("w")

    def run(self, stages: tuple[Stage, ...]) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns) as progress:
            for stage in stages:
                self._run_stage(stage, progress)
        self.log.close()

    def save(self) -> None:
        self.model.save_pretrained(self.out)
        self.tokenizer.save_pretrained(self.out)

    def _run_stage(self, stage: Stage, progress: Progress) -> None:
        task = progress.add_task(stage.name, total=stage.steps)
        running: dict[str, float] = {}
        for index in range(stage.steps):
            decay = 1 - index / stage.steps if stage.decays else 1.0
            loss, accuracy = self._train_step(stage, decay)
            for kind, value in accuracy.items():
                running[kind] = 0.9 * running.get(kind, value) + 0.1 * value
            progress.update(task, advance=1, description=f"{stage.name}: loss {loss:.3f}")
            if self.step % self.log_every == 0:
                self._log(stage.name, loss, running)
            if index >= 20 and running[stage.goal] >= stage.accuracy:
                break
        self.save()

    def _train_step(self, stage: Stage, decay: float) -> tuple[float, dict[str, float]]:
        self.step += 1
        scale = decay * min(1.0, self.step / WARMUP_STEPS)
        batch = self.packer.pack(stage.lessons(self.rng))
        loss, accuracy = step_loss(self.model, batch, self.tokenizer.eos_token_id)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer, rate in zip(self.optimizers, (MUON_LR, ADAMW_LR), strict=True):
            optimizer.param_groups[0]["lr"] = rate * scale
            optimizer.step()
            optimizer.zero_grad()
        return loss.item(), accuracy

    def _log(self, stage: str, loss: float, accuracy: dict[str, float]) -> None:
        row = {"step": self.step, "stage": stage, "seconds": round(time.monotonic() - self.start, 1)}
        row |= {"loss": round(loss, 4)} | {kind: round(value, 4) for kind, value in accuracy.items()}
        self.log.write(json.dumps(row) + "\n")
        self.log.flush()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for model, tokenizer and training_log.jsonl")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scale", type=float, default=1.0, help="length of the last stage, relative to the default")
    arguments = parser.parse_args()
    trainer = Trainer(arguments.out, arguments.seed)
    trainer.run(curriculum(arguments.scale))
    trainer.save()


if __name__ == "__main__":
    main()
