"""A bank of a hundred documents that share names and subjects, asked on both sides.

    python -m benchmarks.bank.corpus --work DIR --out corpus.json --plots DIR
    python -m benchmarks.bank.corpus --work DIR --out corpus.json --joint 12

Each document tells 24 facts. Three of them are about subjects that no other document tells of: the questions are about
these, in three wordings, of which the embedded model asked itself two at most. The other facts are about 60 subjects
that all documents draw from. ``unanswerable`` questions are about subjects that no document tells of; ``unrelated``
ones are general queries. Every retriever has its own router, trained on what the memories asked themselves. With
``--joint`` the first documents are compiled into one memory too, and that is asked the same. A second call compiles and
measures what is missing.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import lcc
from benchmarks.common.environment import describe
from benchmarks.common.models import load
from benchmarks.common.sweep import Sweep
from lcc.bank.evaluation import BankEvaluation, BankQuestion
from lcc.bank.router_training import Trained
from lcc.cli.bank_plots import plot_gates
from lcc.evaluation.metrics import exact_match
from lcc.synthetic.corpus import Corpus, draw_corpus
from lcc.synthetic.exam import general_exam
from lcc.synthetic.seeds import CORPORA
from lcc.text.queries import load_queries

FACTS, OWN, UNRELATED, ANSWER_TOKENS = 24, 3, 200, 16
# Self-asked ones that a router is trained on, at most.
QUESTIONS = 2000
COMPILER = {"compiler": "direct_kv", "recipe": "fast", "ratio": 8.0}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="a folder for texts and memories")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--documents", type=int, default=100)
    parser.add_argument("--retrievers", nargs="*", default=["bm25", "hidden", "asking", "bm25+asking"])
    parser.add_argument("--gates", nargs="*", default=["auto", "conformal"])
    parser.add_argument("--joint", type=int, default=0, help="compile so many documents into one memory too")
    parser.add_argument("--plots", type=Path, help="a folder for the plots of the gates")
    given = parser.parse_args()
    corpus = draw_corpus(random.Random(CORPORA), given.documents, FACTS, OWN)
    folder = compiled(corpus, given.work)
    sweep = Sweep(given.out, lambda row: (row["documents"], row["way"], row["gate"]))
    for retriever, gate in product(given.retrievers, given.gates):
        if sweep.missing([(given.documents, retriever, gate)]):
            sweep.add(measured(corpus, bank_of(folder, given.work, given.documents), retriever, gate, given.plots))
    if given.joint and sweep.missing([(given.joint, "one memory", None)]):
        sweep.add(measured_jointly(corpus, given.joint))
        sweep.add(measured(corpus, bank_of(folder, given.work, given.joint), "asking", "auto", None))


def key_of(number: int) -> str:
    return f"doc{number:03}"


def compiled(corpus: Corpus, work: Path) -> Path:
    """The memories' folder; what is there already is not compiled again."""
    texts = work / "documents"
    texts.mkdir(parents=True, exist_ok=True)
    for number, document in enumerate(corpus.documents):
        (texts / f"{key_of(number)}.txt").write_text(document.text, encoding="utf-8")
    sources = [texts / f"{key_of(number)}.txt" for number in range(len(corpus.documents))]
    outcomes = lcc.compile_documents(*load(), sources, work / "memories", certify=False, **COMPILER)
    failed = [outcome.error for outcome in outcomes if outcome.status == "failed"]
    if failed:
        raise SystemExit(f"{len(failed)} documents cannot be compiled: {failed[0]}")
    return work / "memories"


def bank_of(memories: Path, work: Path, documents: int) -> lcc.MemoryBank:
    """A bank of the first documents."""
    place = work / f"bank{documents}"
    bank = lcc.MemoryBank(place, create=True)
    (place / "router.safetensors").unlink(missing_ok=True)
    for key in map(key_of, range(documents)):
        if key not in bank:
            text = (work / "documents" / f"{key}.txt").read_text(encoding="utf-8")
            bank.import_memory(memories / f"{key}.lcc.safetensors", key, text)
    return bank


def questions_of(corpus: Corpus, documents: int) -> list[BankQuestion]:
    """What one document alone answers, and what none does."""
    about = [
        BankQuestion(question.text, (question.answer,), key_of(number))
        for number in range(documents)
        for question in corpus.questions(number)
    ]
    return [*about, *(BankQuestion(question.text) for question in corpus.unanswerable())]


def unrelated() -> list[str]:
    """General queries that no training of a router or a memory saw."""
    return [query.text for query in general_exam(random.Random(CORPORA), UNRELATED, load_queries())]


def measured(corpus: Corpus, bank: lcc.MemoryBank, retriever: str, gate: str, plots: Path | None) -> dict[str, Any]:
    model, tokenizer = load()
    with bank:
        documents = len(bank.documents())
        began = time.process_time()
        trained = bank.train_router(model, tokenizer, retriever=retriever, questions=QUESTIONS)
        seconds = time.process_time() - began
        ready = bank.open(model, tokenizer, retriever=retriever, gate=gate)
        evaluation = BankEvaluation(ready, exact_match, ANSWER_TOKENS)
        figures = evaluation.run(questions_of(corpus, documents), unrelated())
    if plots is not None:
        plots.mkdir(parents=True, exist_ok=True)
        plot_gates(trained, plots / f"gates-{retriever}.svg")
    row = {"documents": documents, "way": retriever, "gate": gate}
    row |= {"train_seconds": seconds, "router": summary(trained)}
    print(retriever, gate, figures["right_memory"], figures["of_oracle"], flush=True)
    return row | figures | describe()


def summary(trained: Trained) -> dict[str, Any]:
    """What is kept of a training: all but the questions' own signals."""
    return {name: value for name, value in trained.to_dict().items() if name != "signals"}


def measured_jointly(corpus: Corpus, documents: int) -> dict[str, Any]:
    """One memory of all texts, at the same ratio, asked the same questions."""
    model, tokenizer = load()
    text = "\n".join(document.text for document in corpus.documents[:documents])
    began = time.process_time()
    memory = lcc.compile(model, tokenizer, text, certify=False, **COMPILER)
    seconds = time.process_time() - began
    about = [one for one in questions_of(corpus, documents) if one.key]
    return {
        "documents": documents,
        "way": "one memory",
        "gate": None,
        "compile_seconds": seconds,
        "buffer_tokens": memory.buffer_tokens,
        "questions": len(about),
        "answers": {"memory": right(model, tokenizer, memory, about)},
    } | describe()


def right(model: Any, tokenizer: Any, memory: lcc.Memory, about: Sequence[BankQuestion]) -> float:
    """Share of exact answers."""
    answers = lcc.ask(model, tokenizer, memory, [one.question for one in about], max_new_tokens=ANSWER_TOKENS)
    return sum(exact_match(text, one.answers) for text, one in zip(answers, about, strict=True)) / len(about)


if __name__ == "__main__":
    main()
