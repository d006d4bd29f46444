"""What the distillation data is made of."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from ..utils.settings import AUTO, SettingsGroup
from ..utils.values import require

# A lower temperature is lost in float32 when logits are divided by it.
COLDEST = 1e-20
# Questions that ``auto`` means at least.
LEAST_ASKED = 200


@dataclass(frozen=True)
class DataSettings(SettingsGroup):
    """Settings of the distillation data (LCC section 3.4). Compilations that agree in these can share their data.

    Attributes:
        section_tokens: tokens of a section at most. A text of more is compiled in sections that overlap, each with
            buffer tokens of its own, which are trained together. What the model asks itself is of each section, and the
            general queries are shared out. ``auto``: the whole text if the model's window has room for it; else
            sections of which it reads two at once. 0: never in sections.
        section_overlap: tokens of the section before that a section begins with, about.
        across_questions: of a pair of sections: questions for which the model has to read both.
        reconstruction_piece: tokens of text that the model repeats in a step, about: a long text is repeated piece by
            piece. 0: the whole text at once. ``auto``: 256, or 0 with a tokenizer that lacks the words to say where a
            piece begins.
        general_queries: number of context-agnostic queries to draw.
        self_study_questions: number of distinct questions that the model asks itself about the text. 0: none. ``auto``:
            as many as the text has tokens, and 200 at least.
        self_study_temperature: sampling temperature of these questions.
        self_study_asker: how the model is made to ask: ``request``, ``begun``, ``examples`` or ``open_turn``
            (see ``lcc.data.askers``). ``auto``: the way whose first samples are kept most often.
        self_study_min_kl: a question is about the text, and kept, if the teacher's answer hangs on the text by so much:
            mean KL from the answer with to the answer without it, in nats a token.
        self_study_piece: tokens of text that the model is asked about at a time. 0: the whole text at once.
        self_study_hard: share of hard questions: half about pieces twice as long, half about the whole text.
        self_study_follow_ups: share of questions that end a conversation. The model answers its earlier turns.
        rehearsal_questions: in an update, number of questions that the old memory carries and that are asked again; 0:
            none.
        carried_questions: number of questions that a memory carries on after an update, at most: of each text as many
            as it is a share of the tokens.
        max_response_tokens: longest response of the teacher, and longest question that the model may ask itself.
        held_out: share of the query samples that is not trained on but measured. Self-asked questions whose answer
            another question trains are held out first.
        parse_special_tokens: special tokens written in the text, the queries and the questions become control tokens.
            By default they are plain text.
    """

    section_tokens: int | Literal["auto"] = AUTO
    section_overlap: int = 48
    across_questions: int = 64
    reconstruction_piece: int | Literal["auto"] = AUTO
    general_queries: int = 600
    self_study_questions: int | Literal["auto"] = 2000
    self_study_temperature: float = 0.6
    self_study_asker: Literal["auto", "request", "begun", "examples", "open_turn"] = AUTO
    self_study_min_kl: float = 0.1
    self_study_piece: int = 40
    self_study_hard: float = 0.35
    self_study_follow_ups: float = 0.15
    rehearsal_questions: int = 400
    carried_questions: int = 2000
    max_response_tokens: int = 64
    held_out: float = 0.1
    parse_special_tokens: bool = False

    @property
    def asked(self) -> int:
        """``self_study_questions`` as a number: the least that ``auto`` means, while it is not resolved."""
        return LEAST_ASKED if self.self_study_questions == AUTO else int(self.self_study_questions)

    def for_text(self, tokens: int) -> DataSettings:
        """The settings for a text of so many tokens, ``self_study_questions`` as a number."""
        if self.self_study_questions != AUTO:
            return self
        return replace(self, self_study_questions=max(LEAST_ASKED, tokens))

    def check_ranges(self) -> None:
        """Refuse what is out of range."""
        self.require_count("max_response_tokens")
        self.require_more_than(COLDEST, "self_study_temperature")
        self.require_not_negative(
            "general_queries", "self_study_piece", "self_study_min_kl", "rehearsal_questions", "section_overlap",
            "across_questions", "carried_questions",
        )  # fmt: skip
        self.require_share("held_out")
        for name in ("section_tokens", "reconstruction_piece", "self_study_questions"):
            value = getattr(self, name)
            require(value == AUTO or int(value) >= 0, name, value, "auto, or 0 or more")
        shares = (self.self_study_hard, self.self_study_follow_ups)
        plain = 1 - sum(shares)
        possible = min(shares) >= 0 and (plain > 0 or plain == self.self_study_follow_ups == 0)
        wanted = "zero or more, and leave plain questions for conversations to go on from"
        require(possible, "self_study_hard and self_study_follow_ups", shares, wanted)
