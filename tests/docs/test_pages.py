"""The pages of docs/ against the code that they speak of."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import lcc
import lcc_kernels
from lcc.cli.boundary import EXIT_CODES
from lcc.cli.exit_codes import INTERRUPTED, NOT_READ

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
OWN = [page for page in PAGES if page.parent in (ROOT, DOCS, DOCS / "how-to")]
LINK = re.compile(r"\]\(([^()\s#]+)(?:#[^()\s]*)?\)")
# A path in backquotes, in a folder that a checkout has.
PATH = re.compile(r"`((?:python|lcc_kernels|tests|docs)/[\w./-]+)`")


def read(page: str) -> str:
    return (DOCS / page).read_text("utf-8")


def documented(page: str, package: str) -> set[str]:
    return set(re.findall(rf"^::: {package}\.(\w+)$", read(page), re.MULTILINE))


def test_every_public_name_has_an_entry():
    assert documented("reference.md", "lcc") >= set(lcc.__all__) - {"__version__"}
    assert documented("kernels.md", "lcc_kernels") == set(lcc_kernels.__all__)


@pytest.mark.parametrize("page", OWN, ids=lambda page: page.name)
def test_what_a_page_names_is_there(page):
    text = page.read_text("utf-8")
    linked = [page.parent / target for target in LINK.findall(text) if "://" not in target]
    named = [ROOT / path for path in PATH.findall(text)]
    assert [str(path) for path in (*linked, *named) if not path.exists()] == []


def test_the_glossary_defines_every_identity_that_is_cited():
    glossary = read("glossary.md")
    defined = set(re.findall(r"^\*\*(\d)\. ", glossary, re.MULTILINE))
    located = set(re.findall(r"^\| (\d) \|", glossary, re.MULTILINE))
    assert defined == located == set("1234567")
    sources = [*(ROOT / "python").rglob("*.py"), *(ROOT / "lcc_kernels").rglob("*.py")]
    cited = set()
    for source in sources:
        for numbers in re.findall(r"identit(?:y|ies) ([0-9](?:(?:, | and )[0-9])*)", source.read_text("utf-8")):
            cited |= set(re.findall("[0-9]", numbers))
    assert cited
    assert cited <= defined


def test_the_quickstart_has_every_exit_code():
    listed = set(map(int, re.findall(r"^\| (\d+) \|", read("quickstart.md"), re.MULTILINE)))
    assert listed == {0, 1, *EXIT_CODES.values(), INTERRUPTED, NOT_READ}


def test_the_front_page_is_short():
    assert len((ROOT / "README.md").read_text("utf-8").splitlines()) <= 120


def test_every_page_is_in_the_navigation():
    navigation = (ROOT / "mkdocs.yml").read_text("utf-8")
    assert [str(page) for page in PAGES[1:] if f": {page.relative_to(DOCS).as_posix()}\n" not in navigation] == []
