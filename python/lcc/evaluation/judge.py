"""A language model as judge, on the paper's scale from 0 to 5 (LCC section 4.2 and appendix D)."""

from __future__ import annotations

import re
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

from ..errors import InputError
from ..utils.safe_json import parse_json
from .endpoint import RetryError, check_address, check_key, in_background, without
from .examples import Example

HIGHEST_SCORE = 5
# The anchors are section 4.2's and the rules appendix D's; the paper does not print the judge's prompt.
RUBRIC = """You grade an answer to a question on a scale from 0 to 5, for accuracy, coherence and faithfulness rather \
than for its wording.

4 to 5: high fidelity; factually complete and fully consistent with the context.
3 to 4: mostly correct, with minor omissions or slight inconsistencies.
2 to 3: partially correct, with noticeable hallucinations or significant gaps.
below 2: fails to give the relevant information.

Details that are made up cost most. A wrong number or name in an otherwise right answer costs about two points. \
Additions that do not contradict the context cost at most one. An answer in the form that the question asks for, and \
right, gets 5.

Reply with one JSON object and nothing else: {"reason": "one sentence", "score": a number from 0 to 5}"""


@dataclass(frozen=True)
class Verdict:
    """A score from 0 to 5, and why."""

    score: float
    reason: str


@dataclass(frozen=True)
class Judge:
    """Any chat-completions endpoint that speaks OpenAI's protocol.

    Attributes:
        url: the part before ``/chat/completions``, such as ``https://api.openai.com/v1``.
        model: its name there.
        key: sent as a bearer token, if given.
        attempts: requests an answer, when the endpoint is busy or its reply holds no score.
        patience: seconds before the second attempt; it doubles with each.
        timeout: seconds of an attempt, from its beginning to the end of the reply.
        workers: requests at once.
        longest: seconds of all attempts at an answer.
    """

    url: str
    model: str
    key: str | None = field(default=None, repr=False)
    attempts: int = 5
    patience: float = 1.0
    timeout: float = 120.0
    workers: int = 4
    longest: float = 300.0

    def __post_init__(self) -> None:
        """Check address and key, and that there is a client.

        Raises:
            InputError: no http address, one with a password in it or that would send the key in the clear, a key that
                is not one line of printable ASCII, or the openai package is not installed.
        """
        check_address(self.url, self.key)
        if self.key is not None:
            check_key(self.key)
        _completion()

    @property
    def identity(self) -> dict[str, Any]:
        """What verdicts depend on."""
        return {"judge": self.model, "rubric": RUBRIC}

    def verdicts(self, answered: Sequence[tuple[Example, str]]) -> Iterator[Verdict]:
        """Grade (example, answer) pairs, in their order, each as soon as it is there.

        Raises:
            InputError: the endpoint cannot be reached, refuses, or gives no score after all attempts.
        """
        stopped = threading.Event()

        def begin(pair: tuple[Example, str]) -> Future[Verdict]:
            return in_background(lambda: self._verdict(*pair, stopped))

        pairs = iter(answered)
        running = deque(map(begin, islice(pairs, self.workers)))
        try:
            while running:
                verdict = running.popleft().result()
                running.extend(map(begin, islice(pairs, 1)))
                yield verdict
        finally:
            stopped.set()

    def verdict(self, example: Example, answer: str) -> Verdict:
        """Grade one answer.

        Raises:
            InputError: as ``verdicts``.
        """
        return self._verdict(example, answer, threading.Event())

    def _verdict(self, example: Example, answer: str, stopped: threading.Event) -> Verdict:
        """``verdict``, with no attempt after ``stopped`` is set."""
        messages = [{"role": "system", "content": RUBRIC}, {"role": "user", "content": _case(example, answer)}]
        request = {"model": self.model, "temperature": 0, "messages": messages}
        deadline, pause, problem, made = time.monotonic() + self.longest, 0.0, "", 0
        while made < self.attempts and not stopped.wait(pause) and (left := deadline - time.monotonic()) > 0:
            made += 1
            pause = min(self.patience * 2 ** (made - 1), max(0.0, left))
            try:
                verdict = _parse_verdict(self._ask(request, min(self.timeout, left)))
                return replace(verdict, reason=without(self.key, verdict.reason))
            except RetryError as error:
                problem = str(error)
        raise InputError(f"the judge {self.model} at {self.url} gave no score in {made} attempts: {problem}")

    def _ask(self, request: dict[str, Any], seconds: float) -> str:
        """The reply's text."""
        reply = _completion()(self.url, self.key, request, seconds)
        try:
            return without(self.key, str(parse_json(reply)["choices"][0]["message"]["content"]))
        except (ValueError, LookupError, TypeError) as error:
            said = without(self.key, str(error))
            raise InputError(f"{self.url} does not speak OpenAI's chat protocol: its reply {said}") from None


def _completion() -> Callable[[str, str | None, dict[str, Any], float], bytes]:
    """``chat_client.completion``; a judge alone needs the packages under it.

    Raises:
        InputError: they are not installed.
    """
    try:
        from .chat_client import completion
    except ImportError:
        raise InputError("a judge needs the openai package: pip install 'lcc-kernels[eval]'") from None
    return completion


def _case(example: Example, answer: str) -> str:
    """What the judge reads; a general question's context has nothing to do with it and is left out."""
    turns = [f"Q: {question}\nA: {reply}" for question, reply in example.history]
    parts = {
        "Context": "" if example.general else example.context,
        "Conversation so far": "\n".join(turns),
        "Question": example.question,
        "Reference answer": "\n".join(example.answers),
        "Answer to grade": example.answer_prefix + answer or "(empty)",
    }
    return "\n\n".join(f"{name}:\n{text}" for name, text in parts.items() if text)


def _parse_verdict(reply: str) -> Verdict:
    """The score and the reason in a judge's reply, bare or inside other text."""
    match = re.search(r"\{.*\}", reply, re.DOTALL)
    try:
        fields = parse_json(match[0] if match else reply)
        score, reason = float(fields["score"]), str(fields.get("reason", ""))
    except (ValueError, LookupError, TypeError):
        raise RetryError(f"no score in the reply {reply[:200]!r}") from None
    if not 0 <= score <= HIGHEST_SCORE:
        raise RetryError(f"the score {score:g} is not between 0 and {HIGHEST_SCORE}")
    return Verdict(score, reason)
