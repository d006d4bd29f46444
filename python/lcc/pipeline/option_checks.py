"""What ``lcc.compile`` is asked for and cannot do: refused before any work."""

from __future__ import annotations

from ..compilers.base import Compiler, TrainedCompiler
from ..errors import InputError
from ..memory.memory import Memory
from ..text.context import Context
from ..utils.settings import LARGEST
from ..utils.values import check, require
from .settings import CompileSettings

UNITS = {"s": 1, "m": 60, "h": 3600}
NOTHING_TO_MEASURE = (
    'ratio="auto" has nothing to measure: give questions, or let the model ask itself more (self_study_questions, '
    "self_study_weight) and hold more of that out (held_out); only what the full text settles counts"
)


def require_start(start: Memory, compiler: Compiler, searched: bool) -> None:
    """Refuse a memory to start from, whatever the text.

    Raises:
        InputError: saying why.
    """
    if not getattr(compiler, "goes_on", False):
        raise InputError(f"the compiler {compiler.name!r} takes no start: leave it out, or take direct_kv or lcc")
    if start.quantized:
        raise InputError(f"start is a {start.dtype} memory: go on from the float one, and quantise at the end")
    if searched:
        raise InputError('ratio="auto" makes memories of many sizes: name the ratio of start')


def check_sections(context: Context, compiler: Compiler, started: bool, among: bool) -> None:
    """Refuse what goes with no text in sections.

    Raises:
        InputError: saying why.
    """
    what = f"the text has {len(context.context_ids)} tokens and is compiled in sections"
    if not getattr(compiler, "in_sections", False):
        raise InputError(f"{what}, and the compiler {compiler.name!r} takes none: take lcc or direct_kv")
    if started:
        raise InputError(f"{what}: leave start out")
    if among:
        raise InputError(f"{what}, which are one another's distractors: leave distractors out")


def parse_seconds(given: float | str) -> float:
    """The seconds of a budget.

    Raises:
        InputError: it is no time.
    """
    number, unit = (given[:-1], given[-1]) if isinstance(given, str) and given[-1:] in UNITS else (given, "s")
    try:
        seconds = float(number) * UNITS[unit]
    except (TypeError, ValueError):
        seconds = 0.0
    require(0 < seconds < LARGEST, "budget", given, "a time above 0, such as 90s, 10m or 2h")
    return seconds


def check_budget(compiler: Compiler, searched: bool, started: bool, among: bool) -> None:
    """Refuse a budget that goes with no other option.

    Raises:
        InputError: saying why.
    """
    if not isinstance(compiler, TrainedCompiler):
        raise InputError(f"the compiler {compiler.name!r} has no steps to fill a budget with: take lcc or direct_kv")
    if not compiler.goes_on:
        raise InputError(
            f"the compiler {compiler.name!r} does not go on from the instant memory of a budget: take lcc or direct_kv"
        )
    if searched:
        raise InputError('ratio="auto" compiles many memories: name a ratio, or leave the budget out')
    if started:
        raise InputError("a budget makes its own start: leave one of the two out")
    if among:
        raise InputError("a budget counts on steps without distractors: leave one of the two out")


def check_search(settings: CompileSettings, target: float, questions_given: bool, certify: bool) -> None:
    """Refuse, before any work, a search that could not end.

    Raises:
        InputError: saying why.
    """
    check("target", target, float)
    if not 0 < target <= 1:
        raise InputError(f"target is {target}; it must be a share above 0, and 1 at most")
    if not certify:
        raise InputError('ratio="auto" is told by the certificate: leave certify on, or name a ratio')
    data = settings.effective_data
    held_out = int(data.asked * data.held_out)
    if not questions_given and not held_out:
        raise InputError(NOTHING_TO_MEASURE)
