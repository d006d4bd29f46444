"""A Griffe extension: ``cos, sin: at the target positions`` in a docstring is an entry for each of the names."""

from __future__ import annotations

import re
from typing import Any

from griffe import Extension

SECTION = re.compile(r"^(?:Args|Attributes|Raises):\n(?:(?: .*)?(?:\n|$))+", re.MULTILINE)
# Names, which may go on in the next line, and their text, which is indented further.
GROUP = re.compile(r"^ {4}(\w+(?:,\s+\w+)+): (.*(?:\n {5,}.*)*)", re.MULTILINE)


class GroupedNames(Extension):
    """Writes grouped names out before the docstring is parsed."""

    def on_object(self, *, obj: Any, **_: Any) -> None:
        """Rewrite the docstring of ``obj``, if it has one."""
        if obj.docstring:
            obj.docstring.value = SECTION.sub(_written_out, obj.docstring.value)


def _written_out(section: re.Match[str]) -> str:
    return GROUP.sub(_entries, section.group())


def _entries(group: re.Match[str]) -> str:
    names, text = group.groups()
    return "\n".join(f"    {name}: {text}" for name in re.split(r",\s+", names))
