"""``Plan``: the figures of a compilation that has not run yet."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from ..text.context import Context


@dataclass(frozen=True)
class Plan:
    """What ``lcc.compile`` of a text takes; bytes, seconds and floating point operations.

    Attributes:
        text_tokens: length of C.
        buffer_tokens: length of B.
        prefix_tokens: length of P.
        queries: that the teacher answers, of all streams; some are held out of training.
        response_tokens: mean length of the frozen model's first answers.
        step_tokens: tokens that the model processes in a step (text, buffer and samples).
        steps: at most; an early stop ends sooner.
        step_flops, total_flops: of a step, and of all steps, forward and backward, as if all were isolated.
        step_bytes: peak of a step beyond weights and optimizer state: the estimate with full-length responses and the
            longest distractors, or what was measured if that is more.
        measured_step_bytes: the peak of a real step; None where none ran, or not on the whole text.
        state_bytes: LoRA and buffer embeddings with gradients, best copy and AdamW moments.
        teacher_bytes: the teacher's hidden states.
        weight_bytes: of the model, which is loaded already.
        available_bytes: free beside it on the device; None where it cannot be asked.
        probed_tokens: tokens of text in the steps that were timed: fewer than ``text_tokens`` if it does not fit.
        teacher_seconds, step_seconds, total_seconds: expected on this machine, as if all steps were isolated.
        settled: what ``auto`` settings come to.
        advice: what to change if it does not fit.
        sections: that the text is compiled in.
    """

    text_tokens: int
    buffer_tokens: int
    prefix_tokens: int
    queries: int
    response_tokens: float
    step_tokens: int
    steps: int
    step_flops: int
    total_flops: int
    step_bytes: int
    measured_step_bytes: int | None
    state_bytes: int
    teacher_bytes: int
    weight_bytes: int
    available_bytes: int | None
    probed_tokens: int
    teacher_seconds: float
    step_seconds: float
    total_seconds: float
    device: str
    settled: dict[str, Any]
    advice: tuple[str, ...]
    sections: int = 1

    @property
    def needed_bytes(self) -> int:
        """Beyond the weights, at the worst moment."""
        return self.step_bytes + self.state_bytes + self.teacher_bytes

    @property
    def fits(self) -> bool:
        """Whether the free memory is enough, as far as is known."""
        return not self.advice

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self) | {"needed_bytes": self.needed_bytes, "fits": self.fits}

    def in_sections(self, context: Context) -> Plan:
        """The plan of a text in sections, of which this is the one that takes most."""
        count = len(context.sections)
        return replace(
            self,
            sections=count,
            text_tokens=len(context.context_ids),
            buffer_tokens=sum(section.buffer for section in context.sections),
            queries=count * self.queries,
            step_tokens=count * self.step_tokens,
            step_flops=count * self.step_flops,
            total_flops=count * self.total_flops,
            teacher_bytes=count * self.teacher_bytes,
            step_seconds=round(count * self.step_seconds, 4),
            teacher_seconds=round(count * self.teacher_seconds, 2),
            total_seconds=round(count * self.total_seconds, 1),
        )
