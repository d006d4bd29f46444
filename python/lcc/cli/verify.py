"""``lcc verify``: whether a memory is whole, whose it is, and whether its history holds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import InputError
from ..utils.terminal import Terminal, shown
from .options import JsonOption, ModelOption, TrustedOption, print_json


def verify_command(
    memory: Annotated[Path, typer.Argument(help="A memory file, or a delta.", metavar="FILE")],
    model: ModelOption = None,
    lineage: Annotated[
        Path | None,
        typer.Option(help="Compare the history with the ancestors' files in this folder.", metavar="FOLDER"),
    ] = None,
    key: TrustedOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check that a memory is whole and belongs to a model; with --key or --lineage alone, no model is looked at.

    Of a delta it is checked whether it is whole, and with --key who signed it.
    """
    from ..memory.ancestry import verify_lineage
    from ..memory.delta import Delta
    from ..memory.file_format import DELTA_FORMAT
    from ..memory.memory import Memory
    from ..memory.signing import SIGNED_FORMATS, signers_named, verify_signature
    from ..utils.tensor_files import load_stored
    from .loading import load_model

    found: dict[str, Any] = {}
    if key:
        found["signed_by"] = verify_signature(memory, key)
    else:
        found["signatures_not_checked"] = signers_named(memory)
    if load_stored(memory, *SIGNED_FORMATS).format == DELTA_FORMAT:
        if lineage is not None or model is not None:
            raise InputError("a delta has neither a history nor a model: verify the memory that it makes")
        Delta.load(memory, trusted=key or None)
        _say(memory, found, as_json)
        return
    stored = Memory.load(memory, trusted=key or None)
    if lineage is not None:
        found["ancestors"] = verify_lineage(stored, lineage)
    if model is not None or not (key or lineage):
        stored.verify(*load_model(model))
        found["model"] = stored.fingerprint["model_weights"]
    _say(memory, found, as_json)


def _say(memory: Path, found: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json({"path": str(memory), "verified": True} | found)
        return
    said = ["is whole"]
    if "signed_by" in found:
        said.append(f"is signed by {', '.join(found['signed_by'])}")
    if found.get("ancestors"):
        said.append(f"has a history that the files of its ancestors confirm ({found['ancestors']})")
    if found.get("ancestors") == 0:
        said.append("has no ancestors")
    if "model" in found:
        said.append("belongs to this model")
    Terminal().print(f"{shown(memory)} {' and '.join(said)}", soft_wrap=True)
    if unchecked := found.get("signatures_not_checked"):
        Terminal().print(f"it names signatures of {', '.join(unchecked)}, which --key checks", soft_wrap=True)
