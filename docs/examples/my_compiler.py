"""A compiler of one's own: keep K and V of evenly spaced tokens of the text, and train nothing.

Run it with ``python docs/examples/my_compiler.py``.
"""

from pathlib import Path

import lcc
from lcc.embedded_model import load_embedded
from lcc.modeling.prefill import prefill


@lcc.register
class EvenTokens(lcc.BaseCompiler):
    """Every n/K-th token of the text, as the frozen model reads it."""

    name = "even_tokens"

    def compile(self, task: lcc.CompileTask) -> lcc.Compiled:
        """Read the text after the prefix, and take K tokens of it."""
        model, context = task.model, task.context
        tokens, count = len(context.context_ids), context.buffer
        prefix = prefill(model, context.prefix_ids)
        # Rotated, as in a cache, and the prefix is included.
        read = prefill(model, context.context_ids, prefix).tail(tokens)
        # A memory holds keys without rotation: a reader rotates them to the positions where it attaches them.
        text = read.unrotated(model)
        places = [(2 * index + 1) * tokens // (2 * count) for index in range(count)]
        return lcc.Compiled(lcc.KVPayload(text.select(places)))


def main() -> None:
    """Compile at three ratios, and ask."""
    model, tokenizer = load_embedded()
    text = Path(__file__).with_name("village.txt").read_text("utf-8")
    questions = ["Where does Mara live?", "What is the job of Hugo?", "Which instrument does Ines play?"]
    for ratio in (1, 2, 4):
        memory = lcc.compile(model, tokenizer, text, compiler="even_tokens", ratio=ratio, progress=False)
        answers = lcc.ask(model, tokenizer, memory, questions)
        kept = memory.certificate["reconstruction"]["accuracy"]["memory"]
        print(f"ratio {ratio}, {memory.buffer_tokens} buffer tokens by {memory.compiler['name']}")
        print(f"  answers: {', '.join(answers)}; {kept:.0%} of the text's tokens predicted")


if __name__ == "__main__":
    main()
