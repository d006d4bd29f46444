"""``lcc strip``: a memory without the questions and answers that its file holds as they are."""

from __future__ import annotations

from typing import Annotated

import typer

from ..utils.outputs import Output, input_paths, place
from ..utils.terminal import Terminal, shown
from .options import ForceOption, JsonOption, MemoryArgument, print_json


def strip_command(
    memory: MemoryArgument,
    output: Annotated[str, typer.Option("-o", "--output", metavar="PATH", help="The memory file to write.")],
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Write a memory without the questions and answers about its text that the file holds as they are."""
    from ..memory.memory import Memory
    from ..memory.words import strip, words_of

    stored = Memory.load(memory)
    target = Output(place(output, memory.name), () if force else input_paths(memory), force)
    stripped = strip(stored)
    stripped.save(target)
    if as_json:
        print_json(stripped.summary() | {"path": str(target)})
    else:
        count = len(words_of(stored))
        Terminal().print(f"wrote {shown(target)}, without {count} questions and answers", soft_wrap=True)
