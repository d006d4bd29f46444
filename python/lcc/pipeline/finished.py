"""Whether the memory that a compilation would give is there already."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..errors import MemoryFileError, MismatchError, TargetError
from ..memory.memory import FORMAT, Memory
from ..modeling.fingerprint import differing
from ..text.context import text_digest
from ..utils.outputs import Output, is_file
from ..utils.tensor_files import ours
from .ratio_search import TARGET, missed_target
from .settings import AUTO, make_settings

# Options of ``lcc.compile`` that no memory records: they do not tell whether one is the one that is asked for.
UNRECORDED = ("queries", "questions", "certify", "surrogates", "checkpoint_every")


def memory_output(path: Path, text: str, inputs: Iterable[Path] = (), force: bool = False) -> Output:
    """The file that the memory of ``text`` goes to: it replaces memories of the same text."""
    return Output(path, tuple(inputs), force, ours(FORMAT, source_sha256=text_digest(text)))


@dataclass(frozen=True)
class Wanted:
    """What a memory must have been compiled with: its settings, and for ``ratio="auto"`` the target."""

    settings: dict[str, Any]
    target: float | None

    @classmethod
    def of(cls, recipe: str = "default", target: float | None = None, **options: Any) -> Wanted:
        """As ``lcc.compile`` reads its options.

        Raises:
            InputError: a setting that cannot be used.
        """
        settings = {name: value for name, value in options.items() if name not in UNRECORDED}
        searched = settings.get("ratio") == AUTO
        chosen = asdict(make_settings(recipe, **settings | ({"ratio": None} if searched else {})))
        if not searched:
            return cls(chosen, None)
        del chosen["ratio"]
        return cls(chosen, TARGET if target is None else target)


def is_done(output: Output, text: str, wanted: Wanted, print_of: dict[str, str]) -> bool:
    """Whether ``output`` holds what compiling would give; if not, it may be replaced.

    Raises:
        MemoryFileError: it holds something else than a memory, and is not to be forced, or cannot be written.
        MismatchError: it holds another memory, and is not to be forced.
        TargetError: it holds what compiling would give, a memory that misses the target.
    """
    memory = _stored(output.path)
    if memory is not None:
        search = memory.ratio_search or {"target": None, "met": True}
        found = {"text": memory.source_sha256, "target": search["target"]} | memory.settings
        expected = {"text": text_digest(text), "target": wanted.target} | json.loads(json.dumps(wanted.settings))
        others = [name for name, value in expected.items() if found.get(name) != value]
        others += differing(memory.fingerprint, print_of)
        if not others and not search["met"]:
            raise TargetError(f"{missed_target(memory)}, which is in {output}", memory)
        if not others:
            return True
        if not output.force:
            raise MismatchError(
                f"{output} is there already and differs in {', '.join(others)}: compile it again with --force "
                "(force=True), or choose another name for the memory"
            )
    output.check()
    return False


def _stored(path: Path) -> Memory | None:
    """The memory at ``path``, if there is one."""
    if not is_file(path):
        return None
    try:
        return Memory.load(path)
    except MemoryFileError:
        return None
