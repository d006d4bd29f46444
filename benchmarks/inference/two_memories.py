"""What reading two memories together costs: scores of each alone, as the first, and as the second of a cache.

    python -m benchmarks.inference.two_memories --memories DIR --pairs 2
        --out benchmarks/results/inference/composition.json

Pairs of unseen documents about different people, each compiled alone; compiled memories are kept in DIR and used again.
Beside the memories, two readers that never went through compile: the texts' own K and V, read apart and stacked as
memories are, and the two texts read as one. "Alone there" is a memory in its place of the pair, the other one masked
out: what standing elsewhere costs without the other's company. "Side by side" puts both at the same positions.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch

import lcc
from benchmarks.common.environment import describe
from benchmarks.common.results_file import write_rows
from lcc.cli.demo import demo_document
from lcc.embedded_model import load_embedded
from lcc.inference.asking import ask_text
from lcc.modeling.kv import KV
from lcc.modeling.prefill import prefill
from lcc.modeling.shared_cache import SharedCache
from lcc.synthetic.exam import general_exam, score
from lcc.synthetic.people import UNKNOWN, Document
from lcc.synthetic.seeds import DEMO
from lcc.text.chat_format import ChatFormat

GENERAL = 60
PLACES = ("alone", "first", "second")
THERE = ("first, alone there", "second, alone there")
BESIDE = "side by side"
COLUMNS = (*PLACES, *THERE, BESIDE, "stacked")
Stack = Sequence[lcc.Memory]


def disjoint_pairs(count: int) -> Iterator[tuple[int, int]]:
    """Seeds of demo documents, two by two, that share no name: else a question would have two answers."""
    seed = 0
    for _ in range(count):
        first, second = seed, seed + 1
        while set(demo_document(first).names) & set(demo_document(second).names):
            second += 1
        yield first, second
        seed = second + 1


def compiled(model, tokenizer, seed: int, ratio: float, folder: Path) -> lcc.Memory:
    """The memory of a demo document: from its file, or compiled now; a call that is killed goes on next time."""
    path = folder / f"seed{seed}-ratio{ratio:g}.lcc.safetensors"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        checkpoint = path.with_suffix(".checkpoint")
        lcc.compile(model, tokenizer, demo_document(seed).text, ratio=ratio, seed=seed, checkpoint=checkpoint).save(
            path
        )
    memory = lcc.Memory.load(path)
    memory.verify(model, tokenizer)
    return memory


@torch.no_grad()
def as_read(model, tokenizer, memory: lcc.Memory, text: str) -> lcc.Memory:
    """``memory`` with the text's own K and V, a token a token, in place of its own."""
    chat = ChatFormat.of(tokenizer)
    ids, prefix = chat.ids(text), prefill(model, chat.prefix_ids)
    kv = prefill(model, ids, prefix).tail(len(ids)).unrotated(model)
    return replace(memory, payload=lcc.KVPayload(kv), ratio=1.0)


def order_rows(
    model, tokenizer, reader: str, documents: tuple[Document, Document], memories: tuple[lcc.Memory, lcc.Memory]
) -> list[dict]:
    """Scores of both documents' questions: alone, in either order, and in either place without the other."""
    rows = []
    for index, (document, memory) in enumerate(zip(documents, memories, strict=True)):
        texts, other = _texts(document), memories[1 - index]
        stacks = [memory], [memory, other], [other, memory]
        for place, stack in zip(PLACES, stacks, strict=True):
            rows.append(_row(reader, index, place, document, lcc.ask(model, tokenizer, stack, texts, 16)))
        for shown, place in enumerate(THERE):
            answers = ask_one(model, tokenizer, stacks[1 + shown], shown, texts)
            rows.append(_row(reader, index, place, document, answers))
        rows.append(_row(reader, index, BESIDE, document, ask_beside(model, tokenizer, stacks[1], texts)))
    exam = general_exam(random.Random(DEMO), GENERAL)
    texts = [query.text for query in exam]
    for place, answers in (
        ("alone", lcc.ask(model, tokenizer, memories[:1], texts, 16)),
        ("stacked", lcc.ask(model, tokenizer, memories, texts, 16)),
        (BESIDE, ask_beside(model, tokenizer, memories, texts)),
    ):
        rows.append({"reader": reader, "document": "general queries", "place": place, "score": score(answers, exam)})
    return rows


def ask_one(model, tokenizer, stack: Stack, shown: int, texts: list[str]) -> list[str]:
    """Answers over two stacked memories of which only number ``shown`` can be seen."""
    prefix, length = len(stack[0].prefix_ids), stack[0].buffer_tokens
    hidden = (
        slice(prefix, prefix + length) if shown else slice(prefix + length, prefix + length + stack[1].buffer_tokens)
    )
    inputs = lcc.prompt(model, tokenizer, stack, texts)
    inputs["position_ids"] = inputs["attention_mask"].cumsum(-1) - 1
    inputs["attention_mask"][:, hidden] = 0
    return _generate(model, tokenizer, lcc.attach(model, stack), inputs)


@torch.no_grad()
def ask_beside(model, tokenizer, stack: Stack, texts: list[str]) -> list[str]:
    """Answers over memories that share positions: each ends right before the query, as when it was compiled."""
    prefix = prefill(model, stack[0].prefix_ids)
    end = len(prefix) + max(memory.buffer_tokens for memory in stack)
    parts = [prefix, *(memory.kv.rotated(model, end - memory.buffer_tokens) for memory in stack)]
    keys, values = (torch.cat([getattr(part, name) for part in parts], 2) for name in ("keys", "values"))
    kv = KV(keys, values, prefix.start)
    inputs = lcc.prompt(model, tokenizer, stack, texts)
    inputs["position_ids"] = inputs["attention_mask"].cumsum(-1) - 1 + end - len(kv)
    return _generate(model, tokenizer, SharedCache(kv), inputs)


def _generate(model, tokenizer, cache, inputs: dict[str, torch.Tensor]) -> list[str]:
    """Greedy answers."""
    end = ChatFormat.of(tokenizer).end
    options = {"max_new_tokens": 16, "do_sample": False, "eos_token_id": end, "pad_token_id": end}
    new = model.generate(**inputs, past_key_values=cache, **options)[:, inputs["input_ids"].shape[1] :]
    return [given.strip() for given in tokenizer.batch_decode(new, skip_special_tokens=True)]


def text_rows(model, tokenizer, documents: tuple[Document, Document]) -> list[dict]:
    """The same for a model that reads the texts themselves, both as one text."""
    rows = []
    for index, document in enumerate(documents):
        own, other = document.text, documents[1 - index].text
        for place, text in zip(PLACES, (own, f"{own} {other}", f"{other} {own}"), strict=True):
            answers = ask_text(model, tokenizer, text, _texts(document))
            rows.append(_row("full text", index, place, document, answers))
    return rows


def _texts(document: Document) -> list[str]:
    return [question.text for question in document.questions()]


def _row(reader: str, index: int, place: str, document: Document, answers: list[str]) -> dict:
    return {
        "reader": reader,
        "document": index,
        "place": place,
        "score": score(answers, document.questions()),
        "unknown": sum(given == UNKNOWN for given in answers) / len(answers),
        "questions": len(answers),
    }


def measure_pair(model, tokenizer, seeds: tuple[int, int], ratio: float, folder: Path) -> list[dict]:
    documents = demo_document(seeds[0]), demo_document(seeds[1])
    first, second = (compiled(model, tokenizer, seed, ratio, folder) for seed in seeds)
    plain = tuple(
        as_read(model, tokenizer, memory, document.text)
        for memory, document in zip((first, second), documents, strict=True)
    )
    rows = order_rows(model, tokenizer, "memories", documents, (first, second))
    rows += order_rows(model, tokenizer, "K and V read apart", documents, plain)
    rows += text_rows(model, tokenizer, documents)
    return [{"seeds": list(seeds), "ratio": ratio, **row, **describe()} for row in rows]


def table(rows: list[dict]) -> str:
    """Markdown: a line for each pair, reader and document, a column for each place."""
    lines = ["| seeds | reader | about | " + " | ".join(COLUMNS) + " |", "|" + "---|" * (3 + len(COLUMNS))]
    groups: dict[tuple, dict[str, dict]] = {}
    for row in rows:
        about = row["document"] if isinstance(row["document"], str) else f"seed {row['seeds'][row['document']]}"
        groups.setdefault((tuple(row["seeds"]), row["reader"], about), {})[row["place"]] = row
    for (seeds, reader, about), places in groups.items():
        cells = [_cell(places.get(place)) for place in COLUMNS]
        lines.append("| " + " | ".join((f"{seeds[0]}, {seeds[1]}", reader, about, *cells)) + " |")
    return "\n".join(lines)


def _cell(row: dict | None) -> str:
    if row is None:
        return ""
    unknown = f" ({100 * row['unknown']:.0f} % unknown)" if row.get("unknown") else ""
    return f"{100 * row['score']:.1f} %{unknown}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--memories", type=Path, required=True)
    parser.add_argument("--pairs", type=int, default=2)
    parser.add_argument("--ratio", type=float, default=8.0)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    model, tokenizer = load_embedded()
    rows = []
    for seeds in disjoint_pairs(arguments.pairs):
        rows += measure_pair(model, tokenizer, seeds, arguments.ratio, arguments.memories)
    if arguments.out:
        write_rows(arguments.out, rows)
    print(table(rows))


if __name__ == "__main__":
    main()
