"""The teacher: the frozen model that has read the text. It answers queries, and tells which are about the text."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from transformers import PreTrainedModel

from ..modeling.decoding import Decoded, Prompt, Sampling, decode
from ..modeling.generation import batch_rows, end_tokens
from ..modeling.kv import KV
from ..modeling.prefill import prefill, read_prefix
from ..modeling.scoring import Completion, completion_states, token_divergence
from ..modeling.window import window_of
from ..text.chat_format import Query
from ..text.context import Context
from .parts import Parts
from .samples import Sample
from .teacher_states import TeacherStates

# Tokens of a response that tell whether it hangs on the text.
TELLING = 16


class Teacher:
    """A frozen model behind a text.

    Args:
        text_kv: K and V of [P | C], rotated; of a text with a past those of [P | past | C].
        longest: tokens of a response, at most.
        states: holds its hidden states.
        parts: where what it writes is kept, for a run that goes on.
        sections: K and V of [P | section] for each of the sections that the text is joined of, rotated. A question is
            about the text if the answer hangs on every one of them.
        wider: K and V of [P | C | another section], rotated. A question is about the text alone if the answer is the
            same with the other section.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        context: Context,
        text_kv: KV,
        longest: int,
        states: TeacherStates,
        parts: Parts | None = None,
        sections: Sequence[KV] = (),
        wider: KV | None = None,
    ):
        self.model, self.context, self.chat = model, context, context.chat
        self.text_kv, self.longest, self.parts = text_kv, longest, parts or Parts()
        self.prefix_kv = text_kv.head(len(context.prefix_ids))
        # Behind P, and behind a past: what is there without the text.
        self.before_kv = text_kv.head(context.before)
        self.ends = end_tokens(model, self.chat.end).__contains__
        self._states = states
        self._sections, self._wider = sections, wider

    def room(self, visible: KV) -> float:
        """Tokens that a prompt behind ``visible`` may have: the student reads it behind text and buffer."""
        return window_of(self.model) - self.context.buffer - self.longest - len(visible)

    def read(self, ids: Sequence[int], whole: bool) -> KV:
        """K and V of ``ids``, rotated, from position 0 on; and, if ``whole``, of the past and the text behind them."""
        if not whole:
            return prefill(self.model, ids)
        return prefill(self.model, self.context.context_ids, read_prefix(self.model, ids, self.context.past_kv))

    def write(
        self,
        name: str,
        visible: KV,
        prompts: Sequence[Prompt],
        ends: Callable[[int], bool],
        sampling: Sampling,
        text_of: Callable[[Decoded], str],
        report: Callable[[int], None],
    ) -> list[str]:
        """What ``text_of`` makes of what the model writes after each prompt.

        Args:
            name: see ``Parts.kept``.
            report: told how many prompts are done.
        """
        texts: list[str] = []

        def make(part: Sequence[Prompt]) -> tuple[list[str], list[torch.Tensor]]:
            written = [""] * len(part)
            decoded = decode(self.model, visible, part, ends, self.longest, sampling)
            for done, (number, one) in enumerate(decoded, 1):
                written[number] = text_of(one)
                report(len(texts) + done)
            return written, []

        for part, _ in self.parts.kept(name, prompts, make):
            texts += part
            report(len(texts))
        return texts

    def answer(
        self, stream: str, weights: Mapping[Query, float], report: Callable[[int], None], behind: KV | None = None
    ) -> list[Sample]:
        """A sample of ``stream`` for each query, with the teacher's greedy response, its end token and its states.

        Args:
            weights: of the queries.
            report: told how many are answered.
            behind: what the teacher has read, rotated; by default the text.
        """
        visible = self.text_kv if behind is None else behind
        asked = [
            Sample(tuple(self.chat.query_ids(query)), (), stream, query, weight=weight)
            for query, weight in weights.items()
        ]
        answered: list[Sample] = []

        def make(part: Sequence[tuple[int, ...]]) -> tuple[list[list[int]], list[torch.Tensor]]:
            responses: list[list[int]] = [[]] * len(part)
            states = [torch.empty(0)] * len(part)
            decoded = decode(self.model, visible, [Prompt(ids) for ids in part], self.ends, self.longest)
            for done, (number, one) in enumerate(decoded, 1):
                responses[number], states[number] = [*one.ids, self.chat.end], one.states
                report(len(answered) + done)
            return responses, states

        for responses, states in self.parts.kept(stream, [sample.query_ids for sample in asked], make):
            part = asked[len(answered) : len(answered) + len(responses)]
            # One tensor for all, which stays in memory or goes to disk.
            hidden = self._states.keep(torch.cat(states).to(self.model.device)).split([len(one) for one in states])
            answered += [
                replace(sample, response_ids=tuple(response), teacher_hidden=own)
                for sample, response, own in zip(part, responses, hidden, strict=True)
            ]
            report(len(answered))
        return answered

    @torch.no_grad()
    def taught(self, samples: Sequence[Sample]) -> list[Sample]:
        """The samples with the states of their responses, which are read once more."""
        taught: list[Sample] = []
        for some in self._batches(samples, len(self.text_kv)):
            hidden = self._states.keep(completion_states(self.model, self.text_kv, some))
            sizes = [len(sample.response_ids) for sample in some]
            taught += [replace(s, teacher_hidden=h) for s, h in zip(some, hidden.split(sizes), strict=True)]
        return taught

    def text_kl(self, samples: Sequence[Sample]) -> list[float]:
        """How much each response hangs on the text: mean KL from with to without it, in nats a token.

        Of a text that is joined of sections: the least KL to one of them alone. A past is in sight in both.

        The first ``TELLING`` tokens count: what comes later hangs on them.
        """
        if not self._sections:
            return self._divergence(samples, self.before_kv, self.context.past is not None)
        to_one = [self._divergence(samples, section, True) for section in self._sections]
        return [min(kls) for kls in zip(*to_one, strict=True)]

    def wider_kl(self, samples: Sequence[Sample]) -> list[float]:
        """How much each response changes where another section is read too, as ``text_kl``; zeros if none is."""
        return [0.0] * len(samples) if self._wider is None else self._divergence(samples, self._wider, True)

    @torch.no_grad()
    def _divergence(self, samples: Sequence[Sample], visible: KV, after_text: bool) -> list[float]:
        found: list[float] = []
        for some in self._batches(samples, len(visible)):
            without = [
                Completion(tuple(self.chat.query_ids(s.query, after_text)), s.response_ids[:TELLING]) for s in some
            ]
            hidden = completion_states(self.model, visible, without)
            teacher = torch.cat([sample.teacher_hidden[:TELLING].to(hidden) for sample in some])
            by_token = token_divergence(self.model, hidden, teacher)
            found += [part.mean().item() for part in by_token.split([len(c.response_ids) for c in without])]
        return found

    @staticmethod
    def _batches(samples: Sequence[Sample], copied: int) -> Iterator[Sequence[Sample]]:
        rows = batch_rows(copied)
        for start in range(0, len(samples), rows):
            yield samples[start : start + rows]

    def text_of(self, response_ids: Sequence[int]) -> str:
        """A response as text."""
        return self.chat.tokenizer.decode(response_ids, skip_special_tokens=True).strip()
