"""``lcc verify``: whether a memory is whole, whose it is, and whether its history holds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ..utils.terminal import Terminal, shown
from .options import JsonOption, MemoryArgument, ModelOption, TrustedOption, print_json


def verify_command(
    memory: MemoryArgument,
    model: ModelOption = None,
    lineage: Annotated[
        Path | None,
        typer.Option(help="Compare the history with the ancestors' files in this folder.", metavar="FOLDER"),
    ] = None,
    key: TrustedOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check that a memory is whole and belongs to a model; with --key or --lineage alone, no model is looked at."""
    from ..memory.ancestry import verify_lineage
    from ..memory.memory import Memory
    from ..memory.signing import verify_signature
    from .loading import load_model

    found: dict[str, Any] = {}
    if key:
        found["signed_by"] = verify_signature(memory, key)
    stored = Memory.load(memory, trusted=key or None)
    if lineage is not None:
        found["ancestors"] = verify_lineage(stored, lineage)
    if model is not None or not found:
        stored.verify(*load_model(model))
        found["model"] = stored.fingerprint["model_weights"]
    if as_json:
        print_json({"path": str(memory), "verified": True} | found)
        return
    said = ["is whole"]
    if key:
        said.append(f"is signed by {', '.join(found['signed_by'])}")
    if lineage is not None:
        said.append(f"has a history that the files of its ancestors confirm ({found['ancestors']})")
    if "model" in found:
        said.append("belongs to this model")
    Terminal().print(f"{shown(memory)} {' and '.join(said)}", soft_wrap=True)
