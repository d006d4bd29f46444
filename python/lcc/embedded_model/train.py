"""Train the embedded model from nothing: ``python -m lcc.embedded_model.train --out DIR`` (hours on two cores).

Run it again after a kill: it goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from pathlib import Path

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from ..modeling.packed_decoder import PackedDecoder, PackedRow
from ..utils.tensor_files import load_tensors, save_tensors
from .curriculum import Group, Stage, curriculum
from .packing import IGNORED, KINDS, Batch, Packer
from .tokenizer import WINDOW, build_tokenizer

MUON_LR, ADAMW_LR, WARMUP_STEPS, DECAYING_SHARE = 0.02, 3e-3, 40, 0.7
LOG_EVERY = 20
LAYERS = 4
STAGE_FORMAT = "lcc-training-stage-1"


def build_model(tokenizer: PreTrainedTokenizerBase) -> LlamaForCausalLM:
    """A Llama of 1.1 million parameters: 4.5 MB."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=WINDOW,
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
    embeddings = model.get_input_embeddings()(batch.input_ids)[None]
    rows = [PackedRow(batch.layout)] * model.config.num_hidden_layers
    hidden = PackedDecoder(model)(embeddings, batch.layout.position_ids(), rows)[0]
    chosen = batch.labels != IGNORED
    logits, labels, weights = model.lm_head(hidden[chosen]), batch.labels[chosen], batch.weights[chosen]
    loss = (cross_entropy(logits, labels, reduction="none") * weights).sum() / weights.sum()
    right, kinds, content = logits.argmax(-1) == labels, batch.kinds[chosen], labels != end
    accuracy = {}
    for index, kind in enumerate(KINDS):
        of_kind = right[(kinds == index) & content]
        if len(of_kind):
            accuracy[kind] = of_kind.float().mean().item()
    return loss, accuracy


class StageRun:
    """One stage, from fresh optimizers or from where ``path`` says that a killed run stopped."""

    def __init__(self, model: LlamaForCausalLM, packer: Packer, stage: Stage, seed: int, path: Path):
        self.model, self.packer, self.stage, self.seed, self.path = model, packer, stage, seed, path
        self.optimizers = build_optimizers(model)
        self.step, self.seconds, self.reached = 0, 0.0, False
        self.running: dict[str, float] = {}
        self.rows: list[dict] = []
        if path.exists():
            self._resume()

    def run(self, progress: Progress) -> list[dict]:
        """Train to the stage's end; returns its log rows."""
        task = progress.add_task(self.stage.name, total=self.stage.steps, completed=self.step)
        while self.step < self.stage.steps and not self.reached:
            began = time.monotonic()
            loss = self._advance()
            self.seconds += time.monotonic() - began
            progress.update(task, advance=1, description=f"{self.stage.name}: loss {loss:.3f}")
            if self.step % LOG_EVERY == 0:
                self._log(loss)
                self._save()
        return self.rows

    def _advance(self) -> float:
        """One update, from a seed of its own; returns the weighted loss."""
        stage = self.stage
        decay = 1.0 if stage.goal else min(1.0, (1 - self.step / stage.steps) / DECAYING_SHARE)
        self.step += 1
        scale = stage.rate * decay * min(1.0, self.step / WARMUP_STEPS)
        groups = stage.lessons(random.Random(f"{self.seed} {stage.name} {self.step}"))
        loss, accuracy = train_step(self.model, self.packer, groups, self.optimizers, scale)
        for kind, value in accuracy.items():
            self.running[kind] = 0.9 * self.running.get(kind, value) + 0.1 * value
        if stage.goal and self.step >= WARMUP_STEPS:
            kind, wanted = stage.goal
            self.reached = self.running[kind] >= wanted
        return loss

    def _log(self, loss: float) -> None:
        row = {"stage": self.stage.name, "step": self.step, "seconds": round(self.seconds, 1), "loss": round(loss, 4)}
        self.rows.append(row | {kind: round(value, 4) for kind, value in self.running.items()})
        print(json.dumps(self.rows[-1]), flush=True)

    def _states(self) -> list[tuple[str, torch.nn.Parameter, dict[str, torch.Tensor]]]:
        """Each parameter with its name and its optimizer's state, which writes through."""
        owners = {id(p): optimizer for optimizer in self.optimizers for p in optimizer.param_groups[0]["params"]}
        return [(name, p, owners[id(p)].state[p]) for name, p in self.model.named_parameters()]

    def _save(self) -> None:
        tensors: dict[str, torch.Tensor] = {}
        for name, parameter, state in self._states():
            tensors[f"parameter {name}"] = parameter
            tensors |= {f"{key} {name}": value for key, value in state.items()}
        counters = {"step": self.step, "seconds": self.seconds, "reached": self.reached, "stage": self.stage.name}
        metadata = counters | {"running": self.running, "rows": self.rows, "seed": self.seed}
        save_tensors(self.path, STAGE_FORMAT, tensors, metadata)

    def _resume(self) -> None:
        tensors, metadata = load_tensors(self.path, STAGE_FORMAT)
        if (metadata["stage"], metadata["seed"]) != (self.stage.name, self.seed):
            raise ValueError(f"{self.path} is of another stage or seed: finish that training, or delete the file")
        self.step, self.seconds, self.reached = metadata["step"], metadata["seconds"], metadata["reached"]
        self.running, self.rows = metadata["running"], metadata["rows"]
        for name, parameter, state in self._states():
            with torch.no_grad():
                parameter.copy_(tensors.pop(f"parameter {name}"))
            stored = [key for key in tensors if key.split(" ", 1)[1] == name]
            state.update((key.split(" ", 1)[0], tensors[key]) for key in stored)


def train_step(
    model: LlamaForCausalLM,
    packer: Packer,
    groups: list[Group],
    optimizers: list[torch.optim.Optimizer],
    scale: float,
) -> tuple[float, dict[str, float]]:
    """One update from all groups' gradients; returns the weighted loss, and each kind's accuracy."""
    total = 0.0
    accuracy: dict[str, float] = {}
    for group in groups:
        loss, of_group = step_loss(model, packer.pack(group.lessons), packer.tokenizer.eos_token_id)
        (group.weight * loss).backward()
        total += group.weight * loss.item()
        accuracy = of_group | accuracy
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for optimizer, rate in zip(optimizers, (MUON_LR, ADAMW_LR), strict=True):
        optimizer.param_groups[0]["lr"] = rate * scale
        optimizer.step()
        optimizer.zero_grad()
    return total, accuracy


def train(out: Path, stages: tuple[Stage, ...], seed: int = 0) -> None:
    """Train through ``stages`` and leave model, tokenizer and training_log.jsonl in ``out``.

    ``out/stages`` keeps the model after each stage and the state of the unfinished one: delete it when done.
    """
    torch.manual_seed(seed)
    tokenizer = build_tokenizer()
    model, packer = build_model(tokenizer), Packer(tokenizer)
    finished = out / "stages"
    finished.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(out)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns) as progress:
        for number, stage in enumerate(stages):
            folder, state = finished / str(number), finished / "unfinished.safetensors"
            if folder.exists():
                model = LlamaForCausalLM.from_pretrained(folder, trust_remote_code=False)
                continue
            rows = StageRun(model, packer, stage, seed, state).run(progress)
            _finish(model, folder, out / "training_log.jsonl", rows)
            state.unlink(missing_ok=True)
    model.save_pretrained(out)


def _finish(model: LlamaForCausalLM, folder: Path, log_path: Path, rows: list[dict]) -> None:
    """Write a stage's log rows, then its model under a name that only a whole one gets."""
    with log_path.open("a") as log:
        log.writelines(json.dumps(row) + "\n" for row in rows)
    unfinished = folder.with_name("unfinished")
    model.save_pretrained(unfinished)
    unfinished.rename(folder)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for model, tokenizer and training_log.jsonl")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--scale", type=float, default=1.0, help="length of the stages that no goal ends, relative to the default"
    )
    arguments = parser.parse_args()
    train(arguments.out, curriculum(arguments.scale), arguments.seed)


if __name__ == "__main__":
    main()
