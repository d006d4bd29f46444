"""Rows of any memories in one batch."""

from __future__ import annotations

import queue
import threading
from functools import partial

import pytest
import torch

from lcc.inference.attached import attached
from lcc.modeling.generation import end_tokens
from lcc.modeling.kv import no_tokens
from lcc.modeling.row_cache import RowCache
from lcc.serving.api_errors import ApiError
from lcc.serving.batching import Batch, Job
from lcc.serving.drawing import Draws
from lcc.serving.engine import Sampling
from lcc.text.chat_format import ChatFormat
from tests.support.served import until

GREEDY = Sampling(24)


class Answer:
    """A job of a batch, and what it delivers."""

    def __init__(self, key, prefix, ids, sampling=GREEDY):
        self._events: queue.Queue = queue.Queue()
        self.tokens: list[int] = []
        self.job = Job(key, prefix, tuple(ids), sampling.max_new_tokens, Draws(sampling), self._events.put)

    def wait(self):
        """Why it ends; its tokens are there then."""
        while isinstance(event := self._events.get(timeout=20), int):
            self.tokens.append(event)
        assert self._events.empty()
        return event

    def wait_for_a_token(self) -> None:
        self.tokens.append(self._events.get(timeout=20))
        assert isinstance(self.tokens[0], int)


@pytest.fixture
def make_batch(loaded):
    made = []

    def make(rows=16, waiting=64, ends=None):
        model, tokenizer = loaded
        ends = end_tokens(model, ChatFormat.of(tokenizer).end) if ends is None else ends
        made.append(Batch(model, ends, rows, waiting))
        return made[-1]

    yield make
    for batch in made:
        batch.close()


@pytest.fixture
def answer(loaded, shelf):
    """An answer to a question about a memory, or about none."""
    model, tokenizer = loaded

    @torch.no_grad()
    def prefix(memory):
        if memory is None:
            return no_tokens(model)
        with attached(model, shelf.memories[memory]) as there:
            return there.visible

    def make(memory, question, sampling=GREEDY):
        if memory is None:
            said = [{"role": "user", "content": question}]
            ids = tokenizer.apply_chat_template(said, add_generation_prompt=True, return_dict=False)
        else:
            ids = ChatFormat.of(tokenizer).query_ids(question)
        return Answer(memory, partial(prefix, memory), ids, sampling)

    return make


def submit(batch, *answers):
    for each in answers:
        batch.submit(each.job)


def test_mixed_memories_answer_as_ask_does(make_batch, answer, shelf, loaded):
    """With the plain model among them; more than there are rows, so that they enter and leave."""
    batch, tokenizer = make_batch(rows=5), loaded[1]
    answers = [answer(row.memory, row.question) for row in shelf.rows]
    plain = [answer(None, row.question) for row in shelf.rows[::4]]
    mixed = [*answers[:6], *plain, *answers[6:]]
    submit(batch, *mixed)
    assert [each.wait() for each in mixed] == ["stop"] * len(mixed)
    assert [tokenizer.decode(each.tokens, skip_special_tokens=True).strip() for each in answers] == [
        row.answer for row in shelf.rows
    ]
    for each in plain:
        ids = torch.tensor([each.job.ids])
        alone = loaded[0].generate(ids, max_new_tokens=24, do_sample=False)[0, ids.shape[1] :].tolist()
        assert each.tokens == [token for token in alone if token not in batch.ends]


def test_what_shares_the_batch_changes_no_draw(make_batch, answer, shelf):
    how = Sampling(8, temperature=1.5, top_p=0.95, top_k=50, seed=7)
    row, alone = shelf.rows[0], []
    for crowd in (0, 3, 9):
        batch = make_batch(ends=frozenset())
        others = [answer(other.memory, other.question, Sampling(20, 1.0)) for other in shelf.rows[:crowd]]
        submit(batch, *others)
        drawn = answer(row.memory, row.question, how)
        submit(batch, drawn)
        assert drawn.wait() == "length"
        alone.append(drawn.tokens)
        for other in others:
            assert other.wait() == "length"
    assert alone[0] == alone[1] == alone[2]
    assert len(set(alone[0])) > 1


def test_a_prefix_that_fails_fails_its_own_job(make_batch, answer, shelf):
    batch, row = make_batch(), shelf.rows[0]

    def failing():
        raise ApiError(503, "gone")

    good = [answer(row.memory, row.question) for _ in range(2)]
    bad = [Answer("bad", failing, good[0].job.ids) for _ in range(2)]
    submit(batch, good[0], bad[0], good[1], bad[1])
    assert [str(each.wait()) for each in bad] == ["gone", "gone"]
    assert [each.wait() for each in good] == ["stop", "stop"]


@pytest.mark.parametrize("method", ["step", "refill"])
def test_a_failing_step_fails_what_runs_and_no_more(make_batch, answer, shelf, monkeypatch, method):
    batch, row, real = make_batch(ends=frozenset()), shelf.rows[0], getattr(RowCache, method)
    running = [answer(each.memory, each.question, Sampling(4000)) for each in shelf.rows[:3]]
    submit(batch, *running)
    for each in running:
        each.wait_for_a_token()
    failed = threading.Event()

    def failing(*arguments, **options):
        if failed.is_set():
            return real(*arguments, **options)
        failed.set()
        raise RuntimeError("out of memory")

    monkeypatch.setattr(RowCache, method, failing)
    entering = answer(row.memory, row.question, Sampling(5))
    submit(batch, entering)
    assert [str(each.wait()) for each in running] == ["out of memory"] * 3
    assert method == "step" or str(entering.wait()) == "out of memory"
    after = answer(row.memory, row.question, Sampling(5))
    submit(batch, after)
    assert after.wait() == "length"
    assert batch.alive


def test_cancelled_jobs_free_their_rows(make_batch, answer, shelf):
    batch, row = make_batch(rows=1, ends=frozenset()), shelf.rows[0]
    endless = answer(row.memory, row.question, Sampling(4000))
    waits = answer(row.memory, row.question, Sampling(4000))
    submit(batch, endless, waits)
    endless.wait_for_a_token()
    waits.job.cancelled = endless.job.cancelled = True
    last = answer(row.memory, row.question, Sampling(3))
    submit(batch, last)
    assert last.wait() == "length"
    assert waits.tokens == []
    until(lambda: batch._cache is None and not batch._prefixes)
    assert (batch.running, batch.waiting) == (0, 0)


def test_a_full_queue(make_batch, answer, shelf):
    batch, row = make_batch(rows=1, waiting=2, ends=frozenset()), shelf.rows[0]
    endless, *waiting = (answer(row.memory, row.question, Sampling(4000)) for _ in range(3))
    submit(batch, endless)
    endless.wait_for_a_token()
    submit(batch, *waiting)
    last = answer(row.memory, row.question, Sampling(2))
    with pytest.raises(ApiError) as refused:
        batch.submit(last.job)
    assert (refused.value.status, refused.value.retry_after) == (429, 1)
    assert batch.waiting == 2
    waiting[0].job.cancelled = True
    assert batch.waiting == 1
    batch.submit(last.job)
    waiting[1].job.cancelled = endless.job.cancelled = True
    assert last.wait() == "length"


def test_closing_ends_everything(make_batch, answer, shelf):
    batch, row = make_batch(rows=1, ends=frozenset()), shelf.rows[0]
    several = [answer(row.memory, row.question, Sampling(4000)) for _ in range(3)]
    submit(batch, *several)
    several[0].wait_for_a_token()
    batch.close()
    for each in several:
        assert each.wait().status == 503
    with pytest.raises(ApiError, match="shutting down"):
        submit(batch, several[0])
    assert not batch.alive
    batch.close()


def test_a_question_that_is_longer_than_what_is_read_at_once(make_batch, answer, shelf):
    batch, row = make_batch(), shelf.rows[0]
    long = Answer(None, answer(None, "Who?").job.prefix, [5] * 4500, Sampling(2))
    submit(batch, long, short := answer(row.memory, row.question))
    assert long.wait() in ("length", "stop")
    assert short.wait() == "stop"


@pytest.mark.parametrize(
    "how",
    [
        {"temperature": 5e-324},
        {"temperature": 1e-45},
        {"temperature": 1e-12},
        {"temperature": 2.0, "top_k": 1},
        {"temperature": 2.0, "top_p": 5e-324},
    ],
)
def test_draws_that_have_no_choice(how):
    logits = torch.tensor([-1e4, 3.0, 2.999, -torch.inf, 0.0])
    assert {Draws(Sampling(1, seed=seed, **how)).draw(logits) for seed in range(20)} == {1}


def test_draws_are_of_the_probable_tokens():
    logits = torch.tensor([2.0, 0.0, 1.9, -50.0, 1.8])
    for how, expected in (
        ({"top_k": 3}, {0, 2, 4}),
        ({"top_k": 10**30}, {0, 1, 2, 4}),
        ({"top_p": 0.6}, {0, 2}),
        ({}, {0, 1, 2, 4}),
    ):
        assert {Draws(Sampling(1, 1.0, seed=seed, **how)).draw(logits) for seed in range(200)} == expected
    for seed in (0, -1, 2**63, 2**64 + 5, -(10**40)):
        one, two = (Draws(Sampling(1, 1.0, seed=seed)) for _ in range(2))
        assert [one.draw(logits) for _ in range(9)] == [two.draw(logits) for _ in range(9)]


def test_an_answer_goes_on_while_others_keep_coming(make_batch, answer, shelf, monkeypatch):
    """Each turn brings another request, as many as the answer has tokens: it ends before they do."""
    batch, row = make_batch(rows=64, ends=frozenset()), shelf.rows[0]
    first = answer(row.memory, row.question, Sampling(12))
    others = [answer(row.memory, row.question, Sampling(40)) for _ in range(12)]
    entering, came = batch._entering, iter(others)
    ended = []

    def one_more():
        other = next(came, None) if batch._rows else None
        if other is not None:
            batch._waiting.append(other.job)
        return entering()

    monkeypatch.setattr(batch, "_entering", one_more)
    deliver = first.job.deliver
    first.job.deliver = lambda event: (ended.append(sum(one.job.written > 0 for one in others)), deliver(event))
    submit(batch, first)
    assert first.wait() == "length"
    assert ended[-1] < len(others)
