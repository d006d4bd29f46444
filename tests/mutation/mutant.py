"""One fault, and where it is looked for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


class StaleMutantError(Exception):
    """The text that a mutant replaces is not in its file, or not once."""


@dataclass(frozen=True)
class Mutant:
    """``old`` text of a ``file`` replaced by ``new``, and the ``tests`` that must fail then.

    Attributes:
        name: op and fault, as ``op/what-is-wrong``.
        file: from the repository's root.
        old: must occur in the file exactly once.
        new: what takes its place.
        tests: arguments of pytest, the fewest that see the fault.
        interpreted: whether they run in Triton's interpreter.
        harmless: why no test can fail, where that is so.
    """

    name: str
    file: str
    old: str
    new: str
    tests: str
    interpreted: bool = False
    harmless: str = ""

    @property
    def op(self) -> str:
        """The op that is at fault."""
        return self.name.split("/")[0]

    def applied(self, root: Path) -> str:
        """The text of the mutated file.

        Raises:
            StaleMutantError: the old text does not occur exactly once.
        """
        text = (root / self.file).read_text("utf-8")
        if (found := text.count(self.old)) != 1:
            raise StaleMutantError(f"{self.name}: {self.file} has its old text {found} times; write the mutant anew")
        return text.replace(self.old, self.new)
