"""How far the logits of the same question move when a memory is attached elsewhere, on the embedded model.

    python -m benchmarks.inference.position_shift --starts 7 500 2000 10000
        --out benchmarks/results/inference/moving.json

The memory is a document's own K and V; the model's window is raised, which its rope does not depend on.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

import lcc
from benchmarks.common.environment import describe
from benchmarks.common.results_file import write_rows
from benchmarks.inference.two_memories import as_read
from lcc.cli.demo import demo_document
from lcc.embedded_model import load_embedded
from lcc.modeling.kv import KV
from lcc.text.chat_format import ChatFormat

WINDOW = 1 << 15


def text_memory(model, tokenizer, text: str) -> lcc.Memory:
    """The text's own K and V as a memory."""
    config = model.config
    blank = torch.zeros(config.num_hidden_layers, config.num_key_value_heads, 1, config.head_dim)
    prefix = tuple(ChatFormat.of(tokenizer).prefix_ids)
    memory = lcc.Memory(lcc.KVPayload(KV(blank, blank)), prefix, 1.0, 1, "", dict(config.rope_parameters), {}, {})
    return as_read(model, tokenizer, memory, text)


@torch.no_grad()
def logits(model, tokenizer, memory: lcc.Memory, questions: list[str], start: int) -> torch.Tensor:
    """(questions, vocabulary): where each answer begins."""
    inputs = lcc.prompt(model, tokenizer, memory, questions, start, verify=False)
    options = {"max_new_tokens": 1, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    cache = lcc.attach(model, memory, start, verify=False)
    return model.generate(**inputs, past_key_values=cache, **options).logits[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--starts", type=int, nargs="+", default=[7, 500, 2000, 10000])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    model, tokenizer = load_embedded()
    model.config.max_position_embeddings = WINDOW
    document = demo_document(arguments.seed)
    memory = text_memory(model, tokenizer, document.text)
    questions = [question.text for question in document.questions()]
    origin = logits(model, tokenizer, memory, questions, 0)
    rows = []
    for start in arguments.starts:
        moved = logits(model, tokenizer, memory, questions, start)
        rows.append(
            {
                "start": start,
                "largest_logit": origin.abs().max().item(),
                "largest_difference": (moved - origin).abs().max().item(),
                "same_first_token": (moved.argmax(-1) == origin.argmax(-1)).float().mean().item(),
                "questions": len(questions),
                **describe(),
            }
        )
        print(rows[-1])
    if arguments.out:
        write_rows(arguments.out, rows)


if __name__ == "__main__":
    main()
