"""What Attention Matching would keep in memories of other forms: biases of keys, and heads of different lengths.

    python -m benchmarks.compile.matching_forms --documents 0 1 2 3 --ratios 8 16 --out matching-forms.json

The compiler ``attention_matching`` keeps as many keys of each head and folds biases into them. Beside it stand, on the
same queries: no biases (``plain``); exact ones (``biased``); budgets of heads that were fitted to the text
(``by_head``) or to another one, once for the model (``of_model``), the same number of keys in all; and as many keys of
each head as the longest of those has, which is what a plain cache of them would hold (``longest``). ``self-study``
matches on what the model asks itself about the text, in place of repetitions and general queries. ``kl`` is from the
full text's reader over its answers to questions that nothing was matched on. A second call measures what is missing.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import product
from operator import itemgetter
from pathlib import Path
from statistics import mean

import torch

from benchmarks.common.environment import describe
from benchmarks.common.results_file import Row
from benchmarks.common.sweep import Sweep
from benchmarks.compile.starts import Exam
from benchmarks.fidelity.methods import ragged_matching
from benchmarks.fidelity.methods.biased_attention import attending_with
from benchmarks.fidelity.methods.ragged_matching import Budgets, Matching, by_head, uniform
from lcc.compilers.attention_matching.compiler import MatchingSettings, before_reader, read_text, references, self_asked
from lcc.compilers.attention_matching.heads import SELECTIONS
from lcc.inference.reader import Reader
from lcc.modeling.scoring import Completion
from lcc.pipeline.distillation import distillation_data
from lcc.pipeline.settings import make_settings
from lcc.text.context import build_context
from lcc.text.queries import load_queries
from lcc.utils.progress import Reporter

# Budgets of the model are fitted to this document.
FITTED_TO = 100
TOKENS = MatchingSettings().matched_tokens


@dataclass(frozen=True)
class Form:
    """A form of memory: what becomes of biases, the heads' budgets, what it is matched on, and how keys are picked."""

    biases: str
    budgets: str = "uniform"
    read: str = "text"
    keys: str = "highest_attention"

    @property
    def name(self) -> str:
        """Of its rows."""
        return " ".join((self.biases, self.budgets, self.read, self.keys))


MATCHES = {"folded": ragged_matching.folded, "plain": ragged_matching.plain, "biased": ragged_matching.biased}
BY_HEAD = Form("biased", "by_head")
FORMS = (
    *(Form(biases, keys=keys) for keys in SELECTIONS for biases in MATCHES),
    *(Form("biased", budgets) for budgets in ("by_head", "of_model", "longest")),
    Form("folded", "of_model"),
    *(Form(biases, read="self-study", keys=keys) for keys in SELECTIONS for biases in ("folded", "biased")),
)


class Text:
    """A document at a ratio, and what is read behind it."""

    def __init__(self, number: int, ratio: float):
        self.number, self.exam = number, Exam(str(number))
        self.context = build_context(self.exam.model, self.exam.tokenizer, self.exam.subject.text, ratio)

    def matching(self, form: Form) -> Matching:
        """The text's K and V, not matched yet."""
        context, model = self.context, self.exam.model
        before = read_text(model, context.prefix_ids, context.context_ids)
        text = before_reader(model, *before, context.buffer)
        read = references(context, TOKENS) if form.read == "text" else asked_of_itself(self.number)
        return Matching(model, text, len(context.prefix_ids), read, SELECTIONS[form.keys], MATCHES[form.biases])

    @cached_property
    def fitted(self) -> Budgets:
        """The budgets that are best for the text, see ``by_head``."""
        return by_head(self.matching(BY_HEAD), self.context.buffer)


@cache
def asked_of_itself(number: int) -> list[Completion]:
    """What the model asks itself about a document, as far as it is read."""
    exam, settings = Exam(str(number)), make_settings("fast")
    context = build_context(exam.model, exam.tokenizer, exam.subject.text, settings.ratio)
    settings = settings.for_text(len(context.context_ids))
    queries = load_queries(None, exam.tokenizer)
    data = distillation_data(exam.model, context, settings, queries, None, Reporter(False))
    return self_asked(data, TOKENS)


@cache
def of_model(ratio: float) -> list[list[float]]:
    """Each head's share of a memory, as it is best for one document."""
    other = Text(FITTED_TO, ratio)
    return [[size / other.context.buffer for size in sizes] for sizes in other.fitted]


@torch.no_grad()
def measure(text: Text, ratio: float, form: Form) -> Row:
    """What a form of memory is worth."""
    tokens, most, matching = text.context.buffer, len(text.context.context_ids), text.matching(form)
    budgets: dict[str, Callable[[], Budgets]] = {
        "uniform": lambda: uniform(matching, tokens),
        "by_head": lambda: text.fitted,
        "of_model": lambda: [[min(round(share * tokens), most) for share in shares] for shares in of_model(ratio)],
        "longest": lambda: uniform(matching, max(map(max, text.fitted))),
    }
    matching.fit(budgets[form.budgets]())
    kv, bias = matching.kept()
    with attending_with(text.exam.model, bias):
        kl = text.exam.said.kl(Reader(text.exam.model, text.exam.chat, kv))
    return describe() | {
        "document": text.number, "ratio": ratio, "form": form.name, "kl": kl,
        "bytes": matching.nbytes, "plain_bytes": kv.nbytes,
    }  # fmt: skip


def summary(rows: Sequence[Row]) -> str:
    """A table of means over documents."""
    lines = ["| ratio | form | documents | KL | bytes | of a plain cache |", "|---" * 6 + "|"]
    for ratio, form in dict.fromkeys((row["ratio"], row["form"]) for row in rows):
        found = [row for row in rows if (row["ratio"], row["form"]) == (ratio, form)]
        kl, held, plain = (mean(row[name] for row in found) for name in ("kl", "bytes", "plain_bytes"))
        lines.append(f"| {ratio:g} | {form} | {len(found)} | {kl:.3f} | {held:.0f} | {plain:.0f} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, nargs="+", default=[0, 1, 2, 3])
    parser.add_argument("--ratios", type=float, nargs="+", default=[8, 16])
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    sweep = Sweep(arguments.out, itemgetter("document", "ratio", "form"))
    forms = {form.name: form for form in FORMS}
    for number, ratio in product(arguments.documents, arguments.ratios):
        text = Text(number, ratio)
        for _, _, name in sweep.missing([(number, ratio, name) for name in forms]):
            row = measure(text, ratio, forms[name])
            print(f"{number} {ratio:g} {row['form']}: KL {row['kl']:.3f}, {row['bytes']} bytes", flush=True)
            sweep.add(row)
    print(summary(sweep.rows), end="")


if __name__ == "__main__":
    main()
