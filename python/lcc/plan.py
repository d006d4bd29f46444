"""What a compilation will take, known before it runs: tokens, steps, FLOPs, memory and time on this machine."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

# Share of the free memory to plan with: allocators lose some.
HEADROOM = 0.9


@dataclass(frozen=True)
class Plan:
    """What ``lcc.compile`` of a text takes; see ``lcc.plan``.

    Attributes:
        text_tokens, buffer_tokens, prefix_tokens: C, B and P.
        queries: that the teacher answers, of all streams; some are held out of training.
        step_tokens: rows of C, B and all samples that a step runs.
        steps: at most; an early stop may end sooner.
        step_flops, total_flops: of a packed step, and of all steps.
        step_bytes: peak of a step beyond weights and optimizer state, measured.
        state_bytes: LoRA and buffer embeddings with their gradients, best copy and AdamW moments.
        teacher_bytes: the teacher's hidden states.
        weight_bytes: the model's, which are loaded already.
        available_bytes: free on the device.
        teacher_seconds, step_seconds, total_seconds: expected here; the total is for all steps.
        advice: what to change if it does not fit; empty if it does.
    """

    text_tokens: int
    buffer_tokens: int
    prefix_tokens: int
    queries: int
    step_tokens: int
    steps: int
    step_flops: int
    total_flops: int
    step_bytes: int
    state_bytes: int
    teacher_bytes: int
    weight_bytes: int
    available_bytes: int
    teacher_seconds: float
    step_seconds: float
    total_seconds: float
    device: str
    advice: tuple[str, ...]

    @property
    def needed_bytes(self) -> int:
        """Beyond the weights, at the worst moment."""
        return self.step_bytes + self.state_bytes + self.teacher_bytes

    @property
    def fits(self) -> bool:
        """Whether the free memory is enough."""
        return self.needed_bytes <= HEADROOM * self.available_bytes

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self) | {"needed_bytes": self.needed_bytes, "fits": self.fits}
