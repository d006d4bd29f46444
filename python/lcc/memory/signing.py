"""Who vouches for a file: Ed25519 signatures of its digest, in its header or in a file beside it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

from ..errors import InputError, MemoryFileError, MismatchError
from ..utils.outputs import Output, write_bytes
from ..utils.safe_json import JSONError, parse_json
from ..utils.tensor_files import Stored, load_stored, save_tensors
from ..utils.values import check
from .file_format import DELTA_FORMAT, READABLE
from .keys import PrivateKey, PublicKey, key_name, read_private_key, read_public_keys

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

# The name of the signatures in a file's header, the suffix of a file that holds them, and what they sign first.
IN_HEADER, DETACHED_SUFFIX, FORMAT = "lcc-signature", ".sig", "lcc-signature-1"
SIGNED_FORMATS = (*READABLE, DELTA_FORMAT)
REMEDY = "save the memory anew and sign it, or move the .sig file away"
# Longest file of detached signatures that is read, in bytes.
LONGEST = 1 << 20


class Signature(TypedDict):
    """A signature, 64 bytes, and the public key that it is checked with, 32 bytes; both as hexadecimal digits."""

    public_key: str
    signature: str


def sign(path: str | os.PathLike, private_key: PrivateKey, detached: bool = False) -> Path:
    """Sign a memory's file, or a delta's: all that its digest covers, which is its tensors and its metadata.

    A file may have signatures of several keys. Whoever saves a changed memory saves it unsigned.

    Args:
        path: of the file.
        private_key: an Ed25519 key of ``cryptography``, PEM bytes, or the path of a PEM file, without a password.
        detached: write the signature to ``path``.sig, and leave the file as it is.

    Returns:
        The path of the file that has the signature.

    Raises:
        InputError: the key cannot be read.
        MemoryFileError: the file is damaged or none of ours, or cannot be written.
        MismatchError: the file was replaced meanwhile.
    """
    key = read_private_key(private_key)
    path = Path(path)
    stored = load_stored(path, *SIGNED_FORMATS, apart=True)
    own = Signature(public_key=key_name(key.public_key()), signature=key.sign(_message(stored)).hex())
    target = detached_file(path) if detached else path
    there = _in_file(target) if detached else _in_header(path, stored)
    rows = [*(row for row in there if row["public_key"] != own["public_key"]), own]
    if detached:
        write_bytes(target, json.dumps(rows, indent=1).encode())
        return target

    def unchanged(path: Path) -> None:
        if load_stored(path, *SIGNED_FORMATS).digest != stored.digest:
            raise MismatchError(f"{path} was replaced meanwhile")

    output = Output(path, ours=unchanged, remedy="sign it again")
    save_tensors(output, stored.format, stored.tensors, stored.metadata, stored.beside | {IN_HEADER: json.dumps(rows)})
    return path


def verify_signature(path: str | os.PathLike, keys: Iterable[PublicKey]) -> list[str]:
    """Check that one of ``keys`` has signed a memory's or a delta's file as it is now.

    Args:
        path: of the file; signatures in ``path``.sig count too.
        keys: public Ed25519 keys of ``cryptography``, PEM bytes, or paths of PEM files.

    Returns:
        Those that have signed it, each as the hexadecimal digits of its 32 bytes.

    Raises:
        InputError: a key cannot be read.
        MemoryFileError: the file is damaged or none of ours, is not signed, or was changed after one of the keys
            signed it.
        MismatchError: others have signed it, and none of the keys.
    """
    return require_signed(path, load_stored(path, *SIGNED_FORMATS, apart=True), keys)


def require_signed(path: str | os.PathLike, stored: Stored, keys: Iterable[PublicKey]) -> list[str]:
    """``verify_signature`` of a file that was read; for what is raised see there."""
    trusted = read_public_keys(keys)
    rows = [*_in_header(path, stored), *_in_file(detached_file(Path(path)))]
    if not rows:
        raise MemoryFileError(f"{path} is not signed: ask for a file that is, or sign it with lcc sign")
    known = [row for row in rows if row["public_key"] in trusted]
    if not known:
        names = ", ".join(sorted({row["public_key"] for row in rows}))
        raise MismatchError(f"{path} is signed by {names}: none of them is trusted")
    signers = {row["public_key"] for row in known if _fits(trusted[row["public_key"]], row, _message(stored))}
    if not signers:
        names = ", ".join(sorted({row["public_key"] for row in known}))
        raise MemoryFileError(
            f"{path} was changed after {names} signed it: the signature does not fit; ask for the file that was signed"
        )
    return sorted(signers)


def signers_named(path: str | os.PathLike) -> list[str]:
    """The keys of all signatures of a file, of which none is checked.

    Raises:
        MemoryFileError: the file is damaged or none of ours, or its signatures cannot be read.
    """
    stored = load_stored(path, *SIGNED_FORMATS)
    rows = [*_in_header(path, stored), *_in_file(detached_file(Path(path)))]
    return sorted({row["public_key"] for row in rows})


def is_signed(path: str | os.PathLike) -> bool:
    """Whether the header of a file has signatures, right or wrong.

    Raises:
        MemoryFileError: the file is damaged or none of ours.
    """
    return IN_HEADER in load_stored(path, *SIGNED_FORMATS).beside


def _message(stored: Stored) -> bytes:
    """What is signed: it can be taken for no other kind of text."""
    return "\n".join((FORMAT, stored.format, stored.digest)).encode()


def _fits(key: Ed25519PublicKey, row: Signature, message: bytes) -> bool:
    from cryptography.exceptions import InvalidSignature

    try:
        key.verify(bytes.fromhex(row["signature"]), message)
    except (InvalidSignature, ValueError):
        return False
    return True


def _in_header(path: str | os.PathLike, stored: Stored) -> list[Signature]:
    return _parsed(f"{path}: {IN_HEADER}", stored.beside.get(IN_HEADER, "[]"))


def _in_file(path: Path) -> list[Signature]:
    """The signatures of a detached file, if it is there."""
    if not os.path.lexists(path):
        return []
    if not path.is_file():
        raise MemoryFileError(f"{path} is no file of signatures: move it away")
    try:
        with path.open("rb") as file:
            return _parsed(str(path), file.read(LONGEST))
    except OSError as error:
        raise MemoryFileError(f"cannot read {path}: {error.strerror}") from error


def _parsed(what: str, content: str | bytes) -> list[Signature]:
    try:
        rows = parse_json(content)
        check("signatures", rows, list[Signature])
    except JSONError as error:
        raise MemoryFileError(f"{what} {error}: {REMEDY}") from error
    except InputError as error:
        raise MemoryFileError(f"{what} holds no signatures: {error}: {REMEDY}") from error
    return rows


def detached_file(path: Path) -> Path:
    """The file of a detached signature."""
    return Path(os.fspath(path) + DETACHED_SUFFIX)
