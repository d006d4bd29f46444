"""How sure the model is of the right answers with the full text in sight, and of which token least.

    python -m benchmarks.fidelity.certainty [--documents 8] [--below 0.7]

Prints the answers of the fidelity table's joins and comparisons in which some token has a smaller probability, each
teacher-forced, and how many there are.
"""

from __future__ import annotations

import argparse

import torch

from benchmarks.common.models import load
from benchmarks.fidelity.options import TEST_SEED
from benchmarks.fidelity.study import draw_documents
from lcc.evaluation import Example
from lcc.modeling.kv import KV
from lcc.modeling.prefill import prefill
from lcc.modeling.scoring import Completion, completion_states
from lcc.text.chat_format import ChatFormat

TASK = "fiction medium"


@torch.no_grad()
def probabilities(text: KV, example: Example) -> list[tuple[str, float]]:
    """The right answer's tokens with their probabilities; ``text`` are K and V (rotated) of the prefix and the text."""
    model, tokenizer = load()
    chat = ChatFormat.of(tokenizer)
    ids = (*chat.ids(example.answers[0]), chat.end)
    completion = Completion(tuple(chat.query_ids(example.question)), ids)
    predicted = model.lm_head(completion_states(model, text, [completion])).softmax(-1)
    return [(tokenizer.decode([token]), predicted[place, token].item()) for place, token in enumerate(ids)]


def main(given: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=8)
    parser.add_argument("--below", type=float, default=0.7)
    arguments = parser.parse_args(given)
    model, tokenizer = load()
    chat, asked, unsure = ChatFormat.of(tokenizer), 0, 0
    for document in draw_documents(arguments.documents, 0, [300], 0, TEST_SEED):
        text = prefill(model, [*chat.prefix_ids, *chat.ids(document[0].context)])
        for example in document:
            if example.task != TASK:
                continue
            token, least = min(probabilities(text, example), key=lambda pair: pair[1])
            asked += 1
            if least < arguments.below:
                unsure += 1
                print(f"{least:.2f} for {token!r}: {example.question} {example.answers[0]}")
    print(f"{unsure} of {asked} answers have a token below {arguments.below}")


if __name__ == "__main__":
    main()
