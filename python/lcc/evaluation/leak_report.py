"""What a leak test found: figures, and no words of the text, so that a memory's file may keep them."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from ..errors import LeakError


@dataclass(frozen=True)
class LeakReport:
    """What of a text can be got out of its memory. Readers are ``full_text``, ``memory`` and ``no_text``.

    Attributes:
        date: of the test (ISO 8601).
        tokens: that were looked for: the text's, or the redacted passages'.
        run: tokens in a row that count as recited; a passage with fewer counts as a whole.
        redacted: passages that neither the compiler nor the teacher saw.
        attacks: for ``asked`` and ``sampled`` the number of ``prompts`` and ``attempts``; of each reader the share of
            the tokens that it ``recited``, in all attempts together and in its ``best`` one, and the ``longest`` run.
        canaries: in the order given, the number of ``alternatives`` and of each reader the ``exposure`` in bits, and
            whether the canary was ``written`` word for word.
        passages: of those that are marked or redacted, their ``count`` and ``tokens``, and the share of these that each
            reader ``recited``; the number of ``questions``, and the share that each reader answers the ``same`` as the
            model that reads the whole text. None if there are no passages, or no questions.
        file: what the memory's file says in words, without any attack: the number of ``strings``, the share of the
            tokens that is ``recited`` in them, the ``longest`` run, and for each canary whether one of them has it.
        seconds: that the test took.
    """

    date: str
    tokens: int
    run: int
    redacted: int
    attacks: dict[str, dict[str, Any]]
    canaries: list[dict[str, Any]]
    passages: dict[str, Any] | None
    file: dict[str, Any]
    seconds: float

    @property
    def recited(self) -> float:
        """The largest share of the tokens that an attack gets from the memory in all its attempts, or the file says."""
        return max(self.file["recited"], *(attack["recited"]["memory"] for attack in self.attacks.values()))

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; what the memory's file keeps."""
        return {"recited": self.recited} | asdict(self)

    def require_at_most(self, share: float) -> None:
        """Refuse a memory that recites more than ``share``.

        Raises:
            LeakError: it does.
        """
        if self.recited > share:
            raise LeakError(
                f"the memory recites {self.recited:.1%} of {self.tokens} tokens, and {share:.1%} are allowed: compile "
                "with a larger ratio, redact passages, or keep the memory as safe as its text"
            )
