"""What is lost when one, two and five memories are read together, and what training among distractors gives back.

    python -m benchmarks.bank.composition --out benchmarks/results/bank/composition.json --work DIR

A group is five unseen documents without a common name. Every document of a group stands in company at every place
once. The distractors are memories of six other documents, which are in no company that is asked. Their names are other
ones. Readers:

- ``text``: K and V of the documents themselves, read apart.
- ``alone``: memories that were compiled alone.
- ``0.75``, ``0.5``, ``0.25``: compiled among distractors, with that share of isolated steps.
- ``alone > 20``, ``alone > 60``: ``alone``, then so many steps among distractors, half of them isolated.
- ``…, unasked``: the same without questions about the distractors' texts.
- ``alone > 60 alone``: ``alone``, then 60 more steps alone.
- ``elsewhere``: placed as ``0.5`` is, and nobody is there: what standing at other positions gives by itself.

``score`` is the share of exact answers, ``kl`` that from the full text of the own document over its own answers, in
nats a token. Memories and data are kept in DIR. A second call measures what is missing.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property, partial
from itertools import count, product
from operator import itemgetter
from pathlib import Path
from statistics import mean
from typing import Any

import lcc
from benchmarks.bank.elsewhere import ElsewhereCompiler
from benchmarks.common.environment import describe
from benchmarks.common.models import load
from benchmarks.common.results_file import Row
from benchmarks.common.sweep import Sweep
from lcc.inference.attached import attached
from lcc.inference.reader import Reader, Said, prefill_chat
from lcc.inference.requests import Request
from lcc.synthetic.exam import score
from lcc.synthetic.people import NAMES, UNKNOWN, Document, Question, document
from lcc.synthetic.seeds import DEMO
from lcc.text.chat_format import ChatFormat

PEOPLE, ATTRIBUTES, ANSWER_TOKENS = 5, 3, 16
GROUP, DISTRACTORS = 5, 6
COMPANIES = (1, 2, GROUP)
# People of the groups; the others are those of the distractors.
NAMED = frozenset(NAMES[14:])
# Seeds of the documents start here, and for each group so much further.
APART = 100_000
KEY = ("compiler", "ratio", "reader", "group")
STEPS = {"recipe": "fast", "steps": 60, "evaluate_every": 60}
TEXT, ALONE, ELSEWHERE, LONGER = "text", "alone", "elsewhere", "alone > 60 alone"
REPAIRED = {"alone > 20": 20, "alone > 60": 60, LONGER: 60}
UNASKED = ", unasked"
AMONG = ("0.75", "0.5", "0.25", "alone > 20", "alone > 60")
READERS = (TEXT, ALONE, *AMONG, *(reader + UNASKED for reader in AMONG), LONGER, ELSEWHERE)
Drawn = tuple[int, Document]


def documents(first_seed: int, number: int, grouped: bool) -> list[Drawn]:
    """Unseen documents and their seeds; of a group, no two share a name."""
    free = set(NAMED if grouped else frozenset(NAMES) - NAMED)
    drawn: list[Drawn] = []
    for seed in count(first_seed):
        written = document(random.Random(DEMO + seed), PEOPLE, ATTRIBUTES)
        if free.issuperset(written.names):
            drawn.append((seed, written))
            free -= set(written.names) if grouped else set()
        if len(drawn) == number:
            return drawn
    raise AssertionError


class Group:
    """Five documents, and the memories of them and of their distractors.

    Args:
        folder: where memories and data are kept.
    """

    def __init__(self, number: int, compiler: str, ratio: float, folder: Path):
        self.model, self.tokenizer = load()
        self.chat = ChatFormat.of(self.tokenizer)
        self.compiler, self.ratio, self.folder = compiler, ratio, folder
        self.documents = documents((number + 1) * APART, GROUP, True)

    @cached_property
    def distractors(self) -> list[lcc.Memory]:
        """Memories that were compiled alone, of documents that are asked nothing."""
        return [self.memory(seed, written, ALONE) for seed, written in documents(0, DISTRACTORS, False)]

    def memory(self, seed: int, written: Document, reader: str) -> lcc.Memory:
        """What ``reader`` reads instead of the document: from its file, or made now."""
        path = self.folder / f"{seed}-{self.compiler}-{self.ratio:g}-{reader}.lcc.safetensors"
        if not path.exists():
            options = STEPS | {"compiler": self.compiler, "ratio": self.ratio} | self.options(seed, written, reader)
            made = lcc.compile(
                self.model, self.tokenizer, written.text, certify=False, progress=False,
                surrogates=self.folder / str(seed), **options,
            )  # fmt: skip
            made.save(path)
        return lcc.Memory.load(path)

    def options(self, seed: int, written: Document, reader: str) -> dict[str, Any]:
        """What ``reader`` is compiled with."""
        if reader == ALONE:
            return {}
        among: dict[str, Any] = {"distractors": self.distractors}
        if reader == ELSEWHERE:
            return among | {"compiler": ElsewhereCompiler(), "isolated_share": 0.5}
        if reader.endswith(UNASKED):
            return self.options(seed, written, reader.removesuffix(UNASKED)) | {"distractor_weight": 0.0}
        if reader in REPAIRED:
            steps, share = REPAIRED[reader], 1.0 if reader == LONGER else 0.5
            start = self.memory(seed, written, ALONE)
            return among | {"start": start, "steps": steps, "evaluate_every": steps, "isolated_share": share}
        return among | {"isolated_share": float(reader)}

    def text_memory(self, seed: int, written: Document) -> lcc.Memory:
        """The document's own K and V, a token a token."""
        kv = prefill_chat(self.model, self.chat, written.text)
        own = kv.tail(len(kv) - len(self.chat.prefix_ids)).unrotated(self.model)
        return replace(self.memory(seed, written, ALONE), payload=lcc.KVPayload(own), ratio=1.0)

    def rows(self, reader: str) -> Iterator[Row]:
        """Every document at every place of every company."""
        make = self.text_memory if reader == TEXT else partial(self.memory, reader=reader)
        memories = [make(*drawn) for drawn in self.documents]
        for company, first in product(COMPANIES, range(GROUP)):
            members = [(first + place) % GROUP for place in range(company)]
            with attached(self.model, [memories[member] for member in members], verify=False) as before:
                read = Reader(self.model, self.chat, before.visible)
            for place, member in enumerate(members):
                yield {"company": company, "place": place + 1, "document": member} | self.grade(member, read)

    def grade(self, member: int, reader: Reader) -> Row:
        """Answers to the questions of one document, and how far they are from those of its full text."""
        said, asked = self.said[member], self.asked[member]
        answers = reader.answer([Request((one.text,), max_new_tokens=ANSWER_TOKENS) for one in asked])
        unknown = sum(answer == UNKNOWN for answer in answers) / len(answers)
        return {"score": score(answers, asked), "unknown": unknown, "kl": said.kl(reader), "questions": len(asked)}

    @cached_property
    def asked(self) -> list[list[Question]]:
        """A question about every fact of each document."""
        rng = random.Random(DEMO)
        return [[written.question(fact, rng) for fact in written.facts] for _, written in self.documents]

    @cached_property
    def said(self) -> list[Said]:
        """What the reader of each document's full text says to its questions."""
        readers = [Reader.of_text(self.model, self.chat, written.text) for _, written in self.documents]
        asked = [[one.text for one in questions] for questions in self.asked]
        return [read.say(texts, ANSWER_TOKENS) for read, texts in zip(readers, asked, strict=True)]


def table(rows: Sequence[Row]) -> str:
    """Markdown: a line a reader, its score and KL in each company, and the range over its places."""
    lines = ["| compiler | ratio | reader | groups | " + " | ".join(f"{n} in a cache" for n in COMPANIES) + " |"]
    lines.append("|" + "---|" * (4 + len(COMPANIES)))
    read_by = itemgetter(*KEY[:3])
    for reader in dict.fromkeys(map(read_by, rows)):
        own = [row for row in rows if read_by(row) == reader]
        groups = len({row["group"] for row in own})
        cells = [_cell([row for row in own if row["company"] == company]) for company in COMPANIES]
        lines.append("| " + " | ".join([reader[0], f"{reader[1]:g}", reader[2], str(groups), *cells]) + " |")
    return "\n".join(lines)


def _cell(rows: Sequence[Row]) -> str:
    places = [[row for row in rows if row["place"] == place] for place in sorted({row["place"] for row in rows})]
    scores = [100 * mean(row["score"] for row in at) for at in places]
    spread = f" ({', '.join(f'{one:.1f}' for one in scores)})" if len(scores) > 1 else ""
    return f"{mean(scores):.1f} %{spread}, KL {mean(row['kl'] for row in rows):.3f}"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--groups", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--compiler", choices=("direct_kv", "lcc"), default="direct_kv")
    parser.add_argument("--ratio", type=float, default=8.0)
    parser.add_argument("--readers", nargs="+", choices=READERS, default=list(READERS), metavar="READER")
    parser.add_argument("--work", type=Path, required=True, help="folder of memories and data")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    sweep = Sweep(arguments.out, itemgetter(*KEY))
    groups = {number: Group(number, arguments.compiler, arguments.ratio, arguments.work) for number in arguments.groups}
    keys = product([arguments.compiler], [arguments.ratio], arguments.readers, groups)
    for key in sweep.missing(keys):
        own = dict(zip(KEY, key, strict=True))
        sweep.replace(key, [describe() | own | row for row in groups[own["group"]].rows(own["reader"])])
        print(own["group"], table([row for row in sweep.rows if sweep.key(row) == key]).splitlines()[-1], flush=True)
    print(table(sweep.rows))


if __name__ == "__main__":
    main()
