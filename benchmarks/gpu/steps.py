"""The steps in the order of their worth, each with the seconds that it may take at most."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module

from .case import Case, Scale


@dataclass(frozen=True)
class Step:
    """A module of this package with ``cases(scale)``.

    Attributes:
        name: of the module and in the rows.
        about: what it says of the machine or the kernels.
        seconds: after which it is killed, and the next step begins.
        interpreted: whether its tiny cases need Triton's interpreter.
        slow: whether its tiny cases take longer than a quick preflight may.
    """

    name: str
    about: str
    seconds: int
    interpreted: bool = False
    slow: bool = False

    def cases(self, scale: Scale) -> Sequence[Case]:
        """The step's cases in the order of their worth."""
        return import_module(f"{__package__}.{self.name}").cases(scale)


STEPS = (
    Step("machine", "what the machine copies and multiplies at most, and which backends it has", 120),
    Step("correctness", "every kernel against float64, NaN, strides, chunks; the same bits 1,000 times", 150, True),
    Step("tiles", "tiles of bottleneck attention beside those that are chosen", 70, True),
    Step("attention", "bottleneck attention beside its peers", 80),
    Step("linear_kl", "linear KL beside its peers, and the row kernels", 60),
    Step("memory_bound", "attaching and decoding: CUDA graphs over buffers that take turns", 60),
    Step("training", "steps and a compilation in the shapes of real models, random weights", 90, slow=True),
    Step("end_to_end", "lcc compile and lcc ask with the embedded model", 50, slow=True),
)  # fmt: skip
SECONDS = 580  # for all of them: few take as long as they may


def named(names: Sequence[str]) -> list[Step]:
    """The steps of these names, in the order of ``STEPS``; all for none.

    Raises:
        ValueError: there is no step of that name.
    """
    unknown = set(names) - {step.name for step in STEPS}
    if unknown:
        raise ValueError(f"no step {', '.join(sorted(unknown))}: there are {', '.join(step.name for step in STEPS)}")
    return [step for step in STEPS if not names or step.name in names]
