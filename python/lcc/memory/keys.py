"""Ed25519 keys: PEM files that are read, and a pair that is made."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from ..errors import InputError, MemoryFileError
from ..utils.outputs import os_errors
from ..utils.terminal import first_line
from ..utils.values import quoted

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey


# A key of cryptography, the bytes of a PEM file, or its path.
PublicKey: TypeAlias = "Ed25519PublicKey | bytes | str | os.PathLike[str]"
PrivateKey: TypeAlias = "Ed25519PrivateKey | bytes | str | os.PathLike[str]"
PUBLIC_SUFFIX = ".pub"
# Longest PEM file that is read, in bytes.
LONGEST = 1 << 16


def read_public_keys(given: Iterable[PublicKey]) -> dict[str, Ed25519PublicKey]:
    """Public keys by their 32 bytes as hexadecimal digits.

    Raises:
        InputError: there is none, or one cannot be read.
    """
    if isinstance(given, (str, bytes)):
        raise InputError("trusted is one key: give a list of keys")
    keys = [_public_key(key) for key in given]
    if not keys:
        raise InputError("no key is trusted: name one, or ask for no signature")
    return {key_name(key): key for key in keys}


def key_name(key: Ed25519PublicKey) -> str:
    """What a signature calls the key that made it: its 32 bytes as hexadecimal digits."""
    return key.public_bytes_raw().hex()


def read_private_key(given: PrivateKey) -> Ed25519PrivateKey:
    """A key to sign with.

    Raises:
        InputError: it cannot be read, has a password, or is of another kind.
    """
    serialization, ed25519 = _cryptography()
    kind = ed25519.Ed25519PrivateKey
    return _key(given, kind, lambda content: serialization.load_pem_private_key(content, None), "a private")


def write_key(path: str | os.PathLike) -> tuple[Path, Path]:
    """Make a pair of keys: the private one at ``path``, which its owner alone can read, and ``path``.pub.

    Returns:
        The paths of both.

    Raises:
        MemoryFileError: something is there already, or the files cannot be written.
    """
    serialization, ed25519 = _cryptography()
    key, pem = ed25519.Ed25519PrivateKey.generate(), serialization.Encoding.PEM
    secret = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    public = key.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo)
    private_path = Path(path)
    public_path = Path(os.fspath(path) + PUBLIC_SUFFIX)
    with os_errors(f"cannot write the key {private_path}"):
        if os.path.lexists(public_path):
            raise MemoryFileError(f"{public_path} is there already: name another file for the key")
        _write_new(private_path, secret, 0o600)
        try:
            _write_new(public_path, public, 0o644)
        except BaseException:
            private_path.unlink()
            raise
    return private_path, public_path


def _write_new(path: Path, content: bytes, mode: int) -> None:
    """A file that has ``mode`` before it has any content; nothing is ever replaced, no link followed."""
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    except FileExistsError:
        raise MemoryFileError(f"{path} is there already: name another file for the key") from None
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        with suppress(OSError):
            path.unlink()
        raise


def _public_key(given: PublicKey) -> Ed25519PublicKey:
    serialization, ed25519 = _cryptography()
    return _key(given, ed25519.Ed25519PublicKey, serialization.load_pem_public_key, "a public")


def _key(given: Any, kind: type, parse: Callable[[bytes], Any], wanted: str) -> Any:
    from cryptography.exceptions import UnsupportedAlgorithm

    if isinstance(given, kind):
        return given
    if not isinstance(given, (bytes, str, os.PathLike)):
        raise InputError(f"a key is a {type(given).__name__}; give {wanted} Ed25519 key, PEM bytes or the path of one")
    called = "the key" if isinstance(given, bytes) else f"the key {quoted(os.fspath(given))}"
    content = given if isinstance(given, bytes) else _read(Path(given), called)
    try:
        key = parse(content)
    except TypeError:
        raise InputError(f"{called} has a password: give one without, such as lcc keygen makes") from None
    except (ValueError, UnsupportedAlgorithm) as error:
        said = f"not {wanted} key as PEM: {first_line(error)}"
        for other in ("public", "private"):
            if other not in wanted and f"{other.upper()} KEY".encode() in content:
                said = f"{other}, and {wanted} one is needed: give the other of the two"
        raise InputError(f"{called} is {said}") from error
    if not isinstance(key, kind):
        raise InputError(f"{called} is of another kind than Ed25519: make one with lcc keygen")
    return key


def _read(path: Path, called: str) -> bytes:
    if not path.is_file():
        raise InputError(f"{called} is no file")
    try:
        with path.open("rb") as file:
            return file.read(LONGEST)
    except OSError as error:
        raise InputError(f"{called} cannot be read: {error.strerror}") from error


def _cryptography() -> tuple[Any, Any]:
    try:
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ModuleNotFoundError:
        raise InputError("signatures need the package cryptography: pip install 'lcc-kernels[sign]'") from None
    return serialization, ed25519
