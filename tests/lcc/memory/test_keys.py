"""Ed25519 keys: those that are refused, and the files of a new pair."""

from __future__ import annotations

import os
import stat

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

import lcc
from lcc.memory.keys import read_private_key, read_public_keys, write_key

PEM = serialization.Encoding.PEM
PKCS8 = serialization.PrivateFormat.PKCS8


def test_keys_that_cannot_be_used(tmp_path):
    pair = write_key(tmp_path / "key")
    secret = ed25519.Ed25519PrivateKey.generate()
    locked = secret.private_bytes(PEM, PKCS8, serialization.BestAvailableEncryption(b"x"))
    other = ec.generate_private_key(ec.SECP256R1())
    curve = other.private_bytes(PEM, PKCS8, serialization.NoEncryption())
    curve_public = other.public_key().public_bytes(PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    for key, named in ((locked, "password"), (curve, "another kind"), (pair[1], "is public"), (b"", "private key"),
                       (tmp_path, "no file"), (tmp_path / "absent", "no file"), (7, "a key is a int"),
                       (secret.public_key(), "Ed25519PublicKey")):  # fmt: skip
        with pytest.raises(lcc.InputError, match=named):
            read_private_key(key)
    for keys, named in (([], "no key"), ([pair[0]], "is private"), ([curve_public], "another kind"), (b"x", "a list"),
                        (str(pair[1]), "a list"), ([secret], "Ed25519PrivateKey"),
                        ([tmp_path], "no file")):  # fmt: skip
        with pytest.raises(lcc.InputError, match=named):
            read_public_keys(keys)


def test_a_key_is_secret_from_its_first_byte_and_replaces_nothing(tmp_path, monkeypatch):
    modes, real = [], os.fdopen

    def watched(handle, *given):
        modes.append((stat.S_IMODE(os.fstat(handle).st_mode), os.fstat(handle).st_size))
        return real(handle, *given)

    monkeypatch.setattr(os, "fdopen", watched)
    before = os.umask(0)
    try:
        private, public = write_key(tmp_path / "key")
    finally:
        os.umask(before)
    assert modes[0] == (0o600, 0)
    assert stat.S_IMODE(private.stat().st_mode) == 0o600
    assert (private.name, public.name) == ("key", "key.pub")
    content = private.read_bytes()
    (tmp_path / "taken.pub").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    for taken in ("key", "taken", "link", "", ".."):
        with pytest.raises(lcc.MemoryFileError, match="is there already"):
            write_key(tmp_path / taken)
    assert private.read_bytes() == content
    assert not (tmp_path / "taken").exists()
    assert not (tmp_path / "elsewhere").exists()


def test_no_half_a_pair_is_left(tmp_path, monkeypatch):
    real, calls = os.fsync, []

    def failing(handle):
        calls.append(handle)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        real(handle)

    monkeypatch.setattr(os, "fsync", failing)
    with pytest.raises(lcc.MemoryFileError, match="No space left"):
        write_key(tmp_path / "key")
    assert not list(tmp_path.iterdir())
