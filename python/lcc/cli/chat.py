"""``lcc chat``: turns with a memory, and what was said consolidated when the monitor triggers."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import InputError
from ..utils.outputs import Output
from ..utils.terminal import Terminal, shown, shown_lines
from ..utils.utf8 import check_text
from .options import MemoryArgument, ModelOption

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from ..inference.monitor import Monitor
    from ..memory.consolidation import Consolidation
    from ..memory.memory import Memory
    from ..modeling.kv import KV

AUTO, SHIPPED = "auto", "shipped"
# FlashMem's count.
LATENTS = 8
# A calibration answers so many general queries, with so many tokens each at most.
QUERIES, ANSWER_TOKENS = 16, 32
# Turns become a running memory when it has this many tokens at least.
LEAST_KEPT = 4


def chat_command(
    memory: MemoryArgument,
    monitor: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|auto",
            help="Watch the answers' attention, and turn what was said into a running memory when it spreads out. The "
            "threshold comes from FILE, which is calibrated and written if it is missing; auto keeps no file.",
        ),
    ] = None,
    ratio: Annotated[float, typer.Option(min=1.0, help="Tokens said for each token of the running memory.")] = 8.0,
    latents: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|shipped",
            help=f"When the monitor triggers, append {LATENTS} latents of this consolidator (python -m "
            "lcc.compilers.flashmem.train --form last) instead, and forget nothing; shipped is the embedded model's.",
        ),
    ] = None,
    model: ModelOption = None,
) -> None:
    """Talk with a memory; an empty line, Ctrl-D or Ctrl-C ends it."""
    from ..inference.conversation import Conversation
    from ..memory.memory import Memory
    from .loading import load_model

    if latents is not None and monitor is None:
        raise InputError("--latents are appended when a monitor triggers: give --monitor too")
    stored, terminal = Memory.load(memory), Terminal()
    loaded = load_model(model)
    consolidation, became = _consolidation(loaded[0], ratio, latents)
    watching = None if monitor is None else _monitor(terminal, monitor, *loaded, stored)
    conversation = Conversation(*loaded, stored, monitor=watching)
    least = math.ceil(LEAST_KEPT * ratio)
    while message := next_message(terminal):
        terminal.print(f"[bold green]memory:[/bold green] {shown_lines(conversation.say(message))}")
        done = conversation.consolidate(consolidation, least)
        if done is not None:
            terminal.print(f"(attention spread out: {became}, {done})", style="dim")


def _consolidation(model: PreTrainedModel, ratio: float, latents: str | None) -> tuple[Consolidation, str]:
    """What is done when the monitor triggers, and what that is called.

    Raises:
        InputError: the file of ``latents`` holds a consolidator of another form.
        MemoryFileError, MismatchError: it is damaged, or of another model.
    """
    from ..compilers.attention_matching.running import RunningMemory
    from ..compilers.flashmem.learned import load_last
    from ..memory.consolidation import Appended

    if latents is None:
        return RunningMemory(ratio), "what was said is a running memory now"
    consolidator = load_last(model, None if latents == SHIPPED else latents)

    def write(model: PreTrainedModel, read: KV, hidden: torch.Tensor) -> torch.Tensor:
        return consolidator.embeddings(model, read, hidden, LATENTS)

    return Appended(write), f"{LATENTS} latents were appended"


def _monitor(
    terminal: Terminal, source: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, memory: Memory
) -> Monitor:
    """The monitor of a file, or a new one that is written there.

    Raises:
        MemoryFileError: the file is damaged, or cannot be written.
    """
    from ..inference.monitor import Monitor
    from ..text.queries import load_queries

    target = None if source == AUTO else Output(Path(source))
    if target is not None and target.path.exists():
        return Monitor.load(target.path)
    if target is not None:
        target.check()
    terminal.print(f"(calibrating the monitor on {QUERIES} general queries)", style="dim")
    queries = load_queries(None, tokenizer)
    some = queries[:: max(1, len(queries) // QUERIES)][:QUERIES]
    monitor = Monitor.calibrate(model, tokenizer, memory, some, max_new_tokens=ANSWER_TOKENS)
    where = ""
    if target is not None:
        monitor.save(target)
        where = f", written to {shown(target)}"
    terminal.print(f"(it triggers above {monitor.threshold:.3f} nats{where})", style="dim", soft_wrap=True)
    return monitor


def next_message(terminal: Terminal) -> str:
    """What is typed next; empty at the end.

    Raises:
        InputError: it is not UTF-8.
    """
    try:
        message = check_text(terminal.input("[bold cyan]you:[/bold cyan] "), "the message")
    except (EOFError, KeyboardInterrupt):
        return ""
    return message.strip() and message
