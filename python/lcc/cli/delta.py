"""``lcc delta`` and ``lcc apply``: the difference of two memories, and a memory from it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..utils.outputs import Output, input_paths, place
from ..utils.terminal import Terminal, shown
from .options import ForceOption, JsonOption, MemoryArgument, TrustedOption, print_json

OutputOption = Annotated[str, typer.Option("-o", "--output", metavar="PATH", help="The file to write.")]


def delta_command(
    old: Annotated[Path, typer.Argument(help="The memory that readers have.", metavar="OLD")],
    new: Annotated[Path, typer.Argument(help="The memory that they are to have.", metavar="NEW")],
    output: OutputOption,
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Write what turns one memory into another."""
    from ..memory.delta import Delta, delta_output
    from ..memory.memory import Memory

    target = delta_output(Path(output), input_paths(old, new), force)
    target.check()
    Delta.between(Memory.load(old), Memory.load(new)).save(target)
    sizes = {"bytes": target.path.stat().st_size, "memory_bytes": new.stat().st_size}
    if as_json:
        print_json({"path": str(target)} | sizes)
        return
    small, large = (size / 1024 for size in sizes.values())
    Terminal().print(f"wrote {shown(target)}, {small:.1f} KiB for a memory of {large:.1f} KiB", soft_wrap=True)


def apply_command(
    memory: MemoryArgument,
    delta: Annotated[Path, typer.Argument(help="A file that lcc delta wrote for it.", metavar="DELTA")],
    output: OutputOption,
    key: TrustedOption = None,
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Turn a memory into a newer one, bit for bit; with --key, only if the delta is signed."""
    from ..memory.delta import Delta
    from ..memory.memory import Memory

    read = input_paths(delta) if force else input_paths(memory, delta)
    target = Output(place(output, memory.name), read, force)
    target.check()
    made = Delta.load(delta, trusted=key or None).apply(Memory.load(memory))
    made.save(target)
    if as_json:
        print_json(made.summary() | {"path": str(target)})
    else:
        Terminal().print(f"wrote {shown(target)}, {made.buffer_tokens} buffer tokens", soft_wrap=True)
