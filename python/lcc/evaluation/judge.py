"""A language model as judge, on the paper's scale from 0 to 5 (LCC section 4.2 and appendix D)."""

from __future__ import annotations

import http.client
import json
import re
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from ..errors import InputError
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
RETRIED = {408, 409, 429, 500, 502, 503, 504}


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
        workers: requests at once.
    """

    url: str
    model: str
    key: str | None = field(default=None, repr=False)
    attempts: int = 5
    patience: float = 1.0
    timeout: float = 120.0
    workers: int = 4

    def __post_init__(self) -> None:
        """Check the address.

        Raises:
            InputError: no http address, or one that would send the key in the clear.
        """
        try:
            parts = urlsplit(self.url)
        except ValueError as error:
            raise InputError(f"the judge's address {self.url!r} is no URL: {error}") from None
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise InputError(f"the judge's address {self.url!r} is no http(s) URL, such as https://api.openai.com/v1")
        if self.key and parts.scheme == "http" and parts.hostname not in ("localhost", "127.0.0.1", "::1"):
            raise InputError(f"the judge's address {self.url} would send the key unencrypted: use https")

    @property
    def identity(self) -> dict[str, Any]:
        """What verdicts depend on."""
        return {"judge": self.model, "rubric": RUBRIC}

    def verdicts(self, answered: Sequence[tuple[Example, str]]) -> Iterator[Verdict]:
        """Grade (example, answer) pairs, in their order, each as soon as it is there.

        Raises:
            InputError: the endpoint cannot be reached, refuses, or gives no score after all attempts.
        """
        pool = ThreadPoolExecutor(self.workers)
        try:
            yield from pool.map(lambda pair: self.verdict(*pair), answered)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def verdict(self, example: Example, answer: str) -> Verdict:
        """Grade one answer.

        Raises:
            InputError: as ``verdicts``.
        """
        body = {
            "model": self.model,
            "temperature": 0,
            "messages": [
                {"role": "system", "content": RUBRIC},
                {"role": "user", "content": _case(example, answer)},
            ],
        }
        problem = ""
        for attempt in range(self.attempts):
            if attempt:
                time.sleep(self.patience * 2 ** (attempt - 1))
            try:
                return _read_verdict(self._post(body))
            except _RetryError as error:
                problem = str(error)
        raise InputError(f"the judge {self.model} at {self.url} gave no score in {self.attempts} attempts: {problem}")

    def _post(self, body: dict[str, Any]) -> str:
        """The reply's text."""
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {self.key}"} if self.key else {})
        address = self.url.rstrip("/") + "/chat/completions"
        request = urllib.request.Request(address, json.dumps(body).encode(), headers)
        try:
            with _OPENER.open(request, timeout=self.timeout) as response:
                reply = json.load(response)
            return str(reply["choices"][0]["message"]["content"])
        except urllib.error.HTTPError as error:
            said = f"HTTP {error.code}: {error.read(300).decode(errors='replace')}"
            if error.code in RETRIED:
                raise _RetryError(said) from None
            raise InputError(f"the judge at {self.url} refuses: {said}") from None
        except (OSError, http.client.HTTPException) as error:
            raise _RetryError(f"no connection ({error})") from None
        except (ValueError, LookupError, TypeError) as error:
            raise InputError(f"{address} does not speak OpenAI's chat protocol: {error!r}") from None


class _RetryError(Exception):
    """Worth another attempt."""


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect would carry the key to another host."""

    def redirect_request(self, *_: object, **__: object) -> None:
        return None


_OPENER = urllib.request.build_opener(_NoRedirect)


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


def _read_verdict(reply: str) -> Verdict:
    """The score and the reason in a judge's reply, bare or inside other text."""
    found = re.search(r"\{.*\}", reply, re.DOTALL)
    try:
        fields = json.loads(found[0] if found else reply)
        score, reason = float(fields["score"]), str(fields.get("reason", ""))
    except (ValueError, LookupError, TypeError):
        raise _RetryError(f"no score in the reply {reply[:200]!r}") from None
    if not 0 <= score <= HIGHEST_SCORE:
        raise _RetryError(f"the score {score:g} is not between 0 and {HIGHEST_SCORE}")
    return Verdict(score, reason)
