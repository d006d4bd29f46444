"""What a terminal is shown."""

from __future__ import annotations

import io
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

import lcc
from lcc.cli import app as cli
from lcc.cli import loading as load
from lcc.inference import asking, conversation
from lcc.utils.progress import Reporter
from lcc.utils.terminal import ACTING, Terminal, first_line, plain, shown, shown_lines


def printed(markup: str) -> str:
    """What a terminal of unending width gets."""
    terminal = Terminal()
    terminal.file = io.StringIO()
    terminal.print(markup, soft_wrap=True, end="")
    return terminal.file.getvalue()


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("\x1b]52;c;eA==\x07", r"\x1b]52;c;eA==\x07"),
        ("\x9b31m", r"\x9b31m"),
        ("a\rb\nc", r"a\rb\nc"),
        ("\u202egpj.exe", r"\u202egpj.exe"),
        ("\u2066\u2028", r"\u2066\u2028"),
        ("\ud800", r"\ud800"),
        ("naïve 漢字 \u200d 👩\u200d🚀", "naïve 漢字 \u200d 👩\u200d🚀"),
    ],
)
def test_what_acts_on_a_terminal_is_written_out(text, written):
    assert plain(text) == written
    assert printed(shown(text)) == written


@pytest.mark.parametrize("text", ["[/red]", "[bold]x[/bold]", "[link=http://x]x[/]", "\\[red]", "a\\", ":bomb:"])
def test_markup_is_text(text):
    assert printed(f"[red]{shown(text)}[/red]") == text


@given(st.text())
def test_any_text_is_shown_as_it_is(text):
    assert printed(f"[bold]{shown(text)}[/bold]") == plain(text)
    assert not ACTING.search(printed(shown_lines(text)).replace("\n", "").replace("\t", ""))


def test_answers_keep_their_lines():
    assert printed(shown_lines("one\n[two]\x1b\n")) == "one\n[two]\\x1b\n"


def test_first_lines_of_errors():
    assert first_line(ValueError("one\ntwo")) == "one"
    assert first_line(ValueError("field 'a':\n  expected int\nthree")) == "field 'a': expected int"
    assert first_line(ValueError("\x1b[2J")) == r"\x1b[2J"
    assert first_line(KeyError()) == "KeyError"


def test_names_in_progress_bars(capsys):
    with Reporter() as reporter:
        reporter.document("evil\x1b[2J[/red]", 0, 2)
    assert r"evil\x1b[2J[/red]" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["ask m Where? Who?", "chat m"])
def test_answers_of_a_model(command, monkeypatch):
    said = "\x1b]0;title\x07[/red]\nTarn"
    monkeypatch.setattr(lcc.Memory, "load", lambda _: None)
    monkeypatch.setattr(load, "load_model", lambda _: (None, None))
    monkeypatch.setattr(asking, "ask", lambda *_, **__: [said, said])
    talk = SimpleNamespace(say=lambda _: said, consolidate=lambda *_: None)
    monkeypatch.setattr(conversation, "Conversation", lambda *_, **__: talk)
    shown = CliRunner().invoke(cli.app, command.split(), input="Where?\n\n").output
    assert r"\x1b]0;title\x07[/red]" in shown
    assert "\nTarn" in shown


@pytest.mark.parametrize("name", ["evil\x1b[2J", "[/red]", "a\nb", "\udcff"])
def test_names_of_files(name, tmp_path):
    result = CliRunner().invoke(cli.app, ["inspect", str(tmp_path / name)])
    assert result.exit_code == 4
    assert plain(name) in result.stderr
    result = CliRunner().invoke(cli.app, ["inspect", "one", name])
    assert result.exit_code == 2
    assert not ACTING.search(result.stderr.replace("\n", ""))
