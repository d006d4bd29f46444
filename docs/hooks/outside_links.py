"""A hook of MkDocs: links that lead out of docs/ stay links on a code host, and become plain text on the site."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parents[1]
ROOT = DOCS.parent
LINK = re.compile(r"(?<!!)\[((?:[^\[\]]|\[[^\[\]]*\])*)\]\(([^()#\s]+)(#[^()\s]*)?\)")


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """The page with ``text (path)`` for every link to a file of the repository that the site does not have.

    Links whose target does not exist are left as they are, so that ``mkdocs build --strict`` refuses them.
    """
    folder = Path(page.file.abs_src_path).parent

    def plain(link: re.Match[str]) -> str:
        text, target, _ = link.groups()
        path = (folder / target).resolve()
        if "://" in target or path.is_relative_to(DOCS) or not path.exists():
            return link.group()
        return f"{text} (`{path.relative_to(ROOT)}`)"

    return LINK.sub(plain, markdown)
