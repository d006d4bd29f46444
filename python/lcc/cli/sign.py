"""``lcc keygen`` and ``lcc sign``: a pair of keys, and a signature with it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..utils.terminal import Terminal, say, shown
from .options import JsonOption, print_json

# Any right of others than the owner.
OTHERS = 0o077


def keygen_command(
    path: Annotated[Path, typer.Argument(help="The file of the private key; the public one gets .pub behind it.")],
    as_json: JsonOption = False,
) -> None:
    """Make an Ed25519 key to sign with. Nothing that is there is replaced."""
    from ..memory.keys import write_key

    private, public = write_key(path)
    if as_json:
        print_json({"private_key": str(private), "public_key": str(public)})
    else:
        Terminal().print(f"wrote {shown(private)}, to be kept secret, and {shown(public)}", soft_wrap=True)


def sign_command(
    file: Annotated[Path, typer.Argument(help="A memory file, or a delta.", metavar="FILE")],
    key: Annotated[Path, typer.Option(help="The private key, as PEM.", metavar="PRIVATE.pem")],
    detached: Annotated[
        bool, typer.Option("--detached", help="Write the signature to FILE.sig, and leave FILE as it is.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Sign a memory or a delta: its tensors, and all that it says of them."""
    from ..memory.signing import sign

    signed = sign(file, key, detached)
    if key.stat().st_mode & OTHERS:
        say(f"[yellow]others on this machine may read {shown(key)}:[/yellow] chmod 600 lets its owner alone")
    if as_json:
        print_json({"path": str(file), "signature": str(signed)})
    else:
        Terminal().print(f"the signature is in {shown(signed)}", soft_wrap=True)
