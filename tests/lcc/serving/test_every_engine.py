"""What OpenAI's client sees of any server of memories: it needs a URL, and questions with their answers."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import openai
import pytest


@pytest.fixture
def client(endpoint):
    with openai.OpenAI(base_url=endpoint.url, api_key="none", max_retries=0, timeout=60) as client:
        yield client


@pytest.fixture
def ask(client, endpoint):
    """Asks one question of a memory; returns the response, or the stream."""

    def asking(question, memory=None, **options):
        more = options.pop("extra_body", {} if memory is None else {"memory": memory})
        said = {"model": endpoint.model, "max_tokens": 24, "temperature": 0} | options
        said.setdefault("messages", [{"role": "user", "content": question}])
        return client.chat.completions.create(**said, extra_body=more)

    return asking


def said(response) -> str:
    return response.choices[0].message.content.strip()


def refusal(kind, call, *arguments, **options):
    with pytest.raises(kind) as refused:
        call(*arguments, **options)
    error = refused.value
    assert error.body["code"] == error.status_code
    assert error.body["message"]
    return error


def test_every_memory_answers_for_itself(ask, endpoint):
    for row in endpoint.rows:
        response = ask(row.question, row.memory)
        assert said(response) == row.answer
        assert response.memory["id"] == row.memory
        assert response.choices[0].finish_reason == "stop"


def test_all_questions_at_once(ask, endpoint):
    rows = endpoint.rows * 3
    with ThreadPoolExecutor(12) as threads:
        answers = list(threads.map(lambda row: said(ask(row.question, row.memory)), rows))
    assert answers == [row.answer for row in rows]


def test_every_way_to_name_a_memory(ask, endpoint):
    row = endpoint.rows[0]
    for more in (
        {"memory": row.memory},
        {"memories": [row.memory]},
        {"cartridges": [{"id": row.memory, "source": "local"}]},
        {"kv_transfer_params": {"memory": row.memory}},
        {"memory": row.memory, "memories": [row.memory]},
    ):
        assert said(ask(row.question, extra_body=more)) == row.answer
    response = ask(row.question, model=f"{endpoint.model}:{row.memory}")
    assert (said(response), response.memory["id"]) == (row.answer, row.memory)


def test_a_stream_says_the_same(ask, endpoint):
    for row in endpoint.rows[::3]:
        whole = ask(row.question, row.memory)
        events = list(ask(row.question, row.memory, stream=True, stream_options={"include_usage": True}))
        assert "".join(event.choices[0].delta.content or "" for event in events if event.choices).strip() == said(whole)
        assert [event.choices[0].finish_reason for event in events if event.choices][-1] == "stop"
        assert events[-1].usage.completion_tokens == whole.usage.completion_tokens
        assert events[-1].usage.prompt_tokens == whole.usage.prompt_tokens


def test_usage_counts_the_memory_as_cached(ask, endpoint):
    row = endpoint.rows[0]
    usage = ask(row.question, row.memory).usage
    assert 0 < usage.prompt_tokens_details.cached_tokens < usage.prompt_tokens
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert usage.completion_tokens > 0


def test_a_second_turn(ask, endpoint):
    first, second = (row for row in endpoint.rows[:2])
    turns = [
        {"role": "user", "content": first.question},
        {"role": "assistant", "content": first.answer},
        {"role": "user", "content": second.question},
    ]
    once = ask(None, first.memory, messages=turns)
    assert said(once) == said(ask(None, first.memory, messages=turns))
    assert once.usage.prompt_tokens > ask(first.question, first.memory).usage.prompt_tokens


def test_a_seed_draws_the_same_again(ask, endpoint):
    row = endpoint.rows[0]
    drawn = [said(ask(row.question, row.memory, temperature=1, seed=3, max_tokens=8)) for _ in range(3)]
    assert len(set(drawn)) == 1


def test_several_choices(ask, endpoint):
    row = endpoint.rows[0]
    # vLLM has one greedy answer.
    response = ask(row.question, row.memory, n=3, temperature=0.001)
    assert [(choice.index, choice.message.content.strip()) for choice in response.choices] == [
        (index, row.answer) for index in range(3)
    ]


def test_stop_texts_are_left_out(ask, endpoint):
    row = next(row for row in endpoint.rows if len(row.answer) > 3)
    response = ask(row.question, row.memory, stop=row.answer[2:])
    assert said(response) == row.answer[:2]
    assert response.choices[0].finish_reason == "stop"


def test_the_longest_answer(ask, endpoint):
    row = endpoint.rows[0]
    response = ask(row.question, row.memory, max_tokens=1)
    assert response.choices[0].finish_reason == "length"
    assert response.usage.completion_tokens == 1


def test_a_completion_goes_on_behind_the_memory(client, endpoint):
    given = {"model": endpoint.model, "max_tokens": 4, "temperature": 0}
    memory = {"memory": endpoint.rows[0].memory}
    one = client.completions.create(prompt="The", **given, extra_body=memory)
    assert one.usage.prompt_tokens > one.usage.prompt_tokens_details.cached_tokens > 0
    two = client.completions.create(prompt=["The", "For"], **given, extra_body=memory)
    assert [choice.index for choice in two.choices] == [0, 1]
    assert two.choices[0].text == one.choices[0].text


def test_lists(client, endpoint):
    memories = {row.memory for row in endpoint.rows}
    assert client.models.retrieve(f"{endpoint.model}:{min(memories)}").parent == endpoint.model
    cards = {card.id: card for card in client.models.list().data}
    assert endpoint.model in cards
    for memory in memories:
        card = cards[f"{endpoint.model}:{memory}"]
        assert card.parent == endpoint.model
        assert card.lcc["buffer_tokens"] > 0
    listed = client.get("/memories", cast_to=object)["data"]
    assert memories <= {row["id"] for row in listed}
    one = client.get(f"/memories/{min(memories)}", cast_to=object)
    assert one in listed
    assert one["digest"] == cards[f"{endpoint.model}:{min(memories)}"].root


def test_unknown_names_are_404(ask, endpoint):
    assert refusal(openai.NotFoundError, ask, "Who?", "nobody").param == "memory"
    assert refusal(openai.NotFoundError, ask, "Who?", model=f"{endpoint.model}:nobody").param == "memory"
    assert refusal(openai.NotFoundError, ask, "Who?", model="another").param == "model"
    for trick in ("../ada", "..", ".", "a/b", "ada\0", "ä" * 300, "%2e%2e", "\n"):
        assert refusal(openai.NotFoundError, ask, "Who?", trick).param == "memory"


def test_what_is_refused(ask, endpoint):
    memory = endpoint.rows[0].memory
    other = next(row.memory for row in endpoint.rows if row.memory != memory)
    foreign = [{"role": "system", "content": "You are a pirate."}, {"role": "user", "content": "Who?"}]
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    for param, options in (
        ("messages", {"messages": foreign}),
        ("messages", {"messages": [{"role": "user", "content": "  "}]}),
        ("messages", {"messages": [{"role": "assistant", "content": "Hi"}]}),
        ("tools", {"tools": [tool]}),
        ("max_tokens", {"max_tokens": 10**6}),
        ("memory", {"extra_body": {"memory": memory, "model": f"{endpoint.model}:{other}"}}),
        ("memories", {"extra_body": {"memory": memory, "memories": [other]}}),
        ("kv_transfer_params", {"extra_body": {"kv_transfer_params": {"memory": memory, "do_remote_decode": True}}}),
        ("prompt_logprobs", {"extra_body": {"memory": memory, "prompt_logprobs": 1}}),
        ("echo", {"extra_body": {"memory": memory, "echo": True}}),
    ):
        assert refusal(openai.BadRequestError, ask, "Who?", memory, **options).param == param, options


def test_a_refusal_before_a_stream_has_a_status(ask):
    assert refusal(openai.NotFoundError, ask, "Who?", "nobody", stream=True).param == "memory"
