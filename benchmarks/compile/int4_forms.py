"""What int4 costs in other forms than the one that is kept: groups of scales, clipping, a Hadamard rotation.

    python -m benchmarks.compile.int4_forms --work DIR --out benchmarks/results/compile/int4-forms.json

Takes the memories of ``benchmarks.compile.size_budget`` from DIR, or compiles them. A form rounds K and V to levels
from -7 to 7 and back; ``self_study`` and ``general`` are KL in nats a token from the float memory, over its own
answers. Clipped scales end at the share of the largest number that has the least squared error. A rotation goes across
head_dim before rounding and is undone behind it, so that it can stand before the keys' own.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from operator import itemgetter
from pathlib import Path
from statistics import geometric_mean

import torch

import lcc
from benchmarks.common.environment import describe
from benchmarks.common.models import load
from benchmarks.common.results_file import Row
from benchmarks.compile.size_budget import compiled, sweep
from lcc.inference.reader import Reader
from lcc.modeling.kv import KV
from lcc.text.chat_format import ChatFormat
from lcc.text.queries import load_queries
from lcc.utils.random_state import sample_up_to

QUESTIONS, ANSWER_TOKENS = 64, 32
SHARES = tuple(1 - step / 50 for step in range(26))


@dataclass(frozen=True)
class Form:
    """How K and V are rounded.

    Attributes:
        key_group: tokens that share a channel's scale; None: all.
        value_groups: scales of a token's value.
        clipped: whether scales are searched.
        rotated: which of K and V are rotated by a Hadamard matrix.
    """

    key_group: int | None = 32
    value_groups: int = 1
    clipped: bool = False
    rotated: str = ""

    def rounded(self, kv: KV) -> KV:
        """What a model would read."""
        keys, values = self._turned(kv.keys.float(), "k"), self._turned(kv.values.float(), "v")
        keys = torch.cat([self._levels(part, 2) for part in keys.split(self.key_group or len(kv), 2)], 2)
        values = self._levels(values.unflatten(-1, (self.value_groups, -1)), -1).flatten(-2)
        return KV(self._turned(keys, "k"), self._turned(values, "v"))

    def _turned(self, x: torch.Tensor, which: str) -> torch.Tensor:
        """The matrix is its own inverse."""
        return x @ hadamard(x.shape[-1]) if which in self.rotated else x

    def _levels(self, x: torch.Tensor, dim: int) -> torch.Tensor:
        tried = [_levels(x, dim, share) for share in (SHARES if self.clipped else SHARES[:1])]
        errors = torch.stack([(one - x).square().sum(dim, keepdim=True) for one in tried])
        best = errors.argmin(0, keepdim=True).expand(1, *x.shape)
        return torch.stack(tried).gather(0, best)[0]


FORMS = {
    "kept": Form(),
    "keys: one group": Form(key_group=None),
    "keys: groups of 64": Form(key_group=64),
    "keys: groups of 16": Form(key_group=16),
    "keys: groups of 8": Form(key_group=8),
    "values: two scales": Form(value_groups=2),
    "clipped": Form(clipped=True),
    "keys rotated": Form(rotated="k"),
    "values rotated": Form(rotated="v"),
    "both rotated": Form(rotated="kv"),
}


def hadamard(width: int) -> torch.Tensor:
    """(width, width), symmetric and orthogonal; width is a power of two."""
    matrix = torch.ones(1, 1)
    while len(matrix) < width:
        matrix = torch.cat((torch.cat((matrix, matrix), 1), torch.cat((matrix, -matrix), 1)))
    return matrix / width**0.5


def _levels(x: torch.Tensor, dim: int, share: float) -> torch.Tensor:
    scale = (x.abs().amax(dim, keepdim=True) * share / 7).bfloat16().float()
    scale = torch.where(scale > 0, scale, 1.0)
    return (x / scale).round().clamp(-7, 7) * scale


def measure(people: int, seed: int, ratio: float, folder: Path) -> Iterator[Row]:
    """A row for each form."""
    model, tokenizer = load()
    memory, chat = compiled(people, seed, ratio, folder), ChatFormat.of(tokenizer)
    reference = Reader.of_memory(model, chat, memory)
    streams = {"self_study": memory.questions, "general": load_queries(None, tokenizer)}
    said = {
        stream: reference.say(sample_up_to(random.Random(0), queries, QUESTIONS), ANSWER_TOKENS)
        for stream, queries in streams.items()
    }
    for name, form in FORMS.items():
        reader = Reader.of_memory(model, chat, replace(memory, payload=lcc.KVPayload(form.rounded(memory.kv))))
        kls = {stream: one.kl(reader) for stream, one in said.items()}
        yield {"people": people, "seed": seed, "ratio": ratio, "form": name, **kls, **describe()}


def table(rows: list[Row]) -> str:
    """Markdown: each form's KL, the geometric mean over memories, and beside that of the form that is kept."""
    lines = ["| form | memories | KL, self-asked | times | KL, general | times |", "|---" * 6 + "|"]
    means = {}
    for name in FORMS:
        group = [row for row in rows if row["form"] == name]
        means[name] = [geometric_mean(map(itemgetter(stream), group)) for stream in ("self_study", "general")]
        cells = [f"{mean:.2g} | {mean / kept:.2f}" for mean, kept in zip(means[name], means["kept"], strict=True)]
        lines.append(f"| {name} | {len(group)} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sweep(__doc__, measure, table, seeds=[0, 1], ratios=[16, 8, 4])
