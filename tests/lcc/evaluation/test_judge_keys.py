"""Where a judge's key goes, and where it never does."""

from __future__ import annotations

import pytest

from lcc.errors import InputError
from lcc.evaluation import Judge
from lcc.evaluation.endpoint import is_loopback, load_key

KEY = "sk-SECRET"


@pytest.mark.parametrize(
    "host", ["127.example.com", "localhost.example.com", "10.0.0.1", "128.0.0.1", "2130706433", "[::2]"]
)
def test_a_key_is_sent_in_the_clear_to_this_machine_alone(host):
    assert not is_loopback(f"http://{host}/v1")
    with pytest.raises(InputError, match="would send the key unencrypted: use https"):
        Judge(f"http://{host}/v1", "m", KEY)
    Judge(f"https://{host}/v1", "m", KEY)
    Judge(f"http://{host}/v1", "m")


@pytest.mark.parametrize(
    "address",
    [
        f"https://user:{KEY}@judge.example/v1", f"https://{KEY}@judge.example/v1", f"https://judge.example/v1?key={KEY}",
        f"https://judge.example/v1#{KEY}", f"user:{KEY}@judge.example/v1", f"https://u:{KEY}@[judge/v1",
        f"https://u:{KEY}@judge.example:99999/v1", f"https://u:{KEY}@judge.example:port/v1", f"https://judge.example/{KEY}\n",
        f"https://jüdge.example/{KEY}", f"ftp://u:{KEY}@judge.example",
    ],
)  # fmt: skip
def test_a_secret_in_an_address_is_not_quoted(address):
    with pytest.raises(InputError, match="the judge's address") as refusal:
        Judge(address, "m")
    assert "SECRET" not in str(refusal.value)
    assert refusal.value.__cause__ is None
    assert refusal.value.__suppress_context__ or refusal.value.__context__ is None


@pytest.mark.parametrize("content", [b"sk-SECRET", b"sk-SECRET\n", b"\n sk-SECRET\r\n\n", b"\xef\xbb\xbfsk-SECRET"])
def test_a_key_file(content, tmp_path):
    (tmp_path / "key").write_bytes(content)
    assert load_key(tmp_path / "key") == KEY


@pytest.mark.parametrize(
    "content",
    [
        b"", b"\n", b"sk-SECRET\nsecond", b"sk-SECRET second", b"sk-SECRET\x00",
        b"sk-SECR\xe9T", b"sk-SECRET\x1b[2J", b"sk-SECRET" * 9999,
    ],
)  # fmt: skip
def test_a_file_that_holds_no_key_is_not_quoted(content, tmp_path):
    (tmp_path / "key").write_bytes(content)
    with pytest.raises(InputError, match="must be one line of printable ASCII") as refusal:
        load_key(tmp_path / "key")
    assert "SEC" not in str(refusal.value)
    with pytest.raises(InputError, match="must be one line of printable ASCII") as refusal:
        Judge("https://judge.example/v1", "m", content.decode("latin-1") if len(content) < 999 else "")
    assert "SEC" not in str(refusal.value)


def test_a_key_file_that_cannot_be_read(tmp_path):
    with pytest.raises(InputError, match="cannot read the key file"):
        load_key(tmp_path)
