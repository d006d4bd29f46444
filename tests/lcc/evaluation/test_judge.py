"""The judge against a local endpoint that speaks OpenAI's protocol."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from lcc.errors import InputError
from lcc.evaluation import Example, Judge

EXAMPLE = Example("Bolt built two silver wings.", "What did Bolt build?", ("two wings",), history=(("Who?", "Bolt"),))


@pytest.fixture
def endpoint():
    """A server that gives ``server.replies`` in turn, then the last one; ``server.seen`` holds what it was sent."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            server.seen.append((self.path, self.headers.get("Authorization"), body))
            status, content = server.replies.pop(0) if len(server.replies) > 1 else server.replies[0]
            self.send_response(status)
            self.send_header("Location", "/elsewhere")
            self.end_headers()
            self.wfile.write(content.encode())

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.seen, server.replies = [], []
    server.url = f"http://127.0.0.1:{server.server_port}/v1"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def says(content: str) -> tuple[int, str]:
    return 200, json.dumps({"choices": [{"message": {"content": content}}]})


def judge(endpoint, **options) -> Judge:
    return Judge(endpoint.url, "gpt-4o", **{"patience": 0.0, "attempts": 3, **options})


def test_a_verdict(endpoint):
    endpoint.replies = [says('{"reason": "one wing short", "score": 3}')]
    verdict = judge(endpoint, key="secret").verdict(EXAMPLE, "a wing")
    assert (verdict.score, verdict.reason) == (3, "one wing short")
    ((path, authorization, body),) = endpoint.seen
    assert (path, authorization) == ("/v1/chat/completions", "Bearer secret")
    assert (body["model"], body["temperature"]) == ("gpt-4o", 0)
    system, user = (message["content"] for message in body["messages"])
    assert "0 to 5" in system
    for part in (EXAMPLE.context, EXAMPLE.question, "two wings", "a wing", "Q: Who?\nA: Bolt"):
        assert part in user


def test_a_general_question_is_judged_without_the_context(endpoint):
    endpoint.replies = [says('{"score": 5}')]
    judge(endpoint).verdict(Example("the text", "What is 1 + 1?", ("2",), general=True), "")
    _, authorization, body = endpoint.seen[0]
    assert authorization is None
    assert "the text" not in body["messages"][1]["content"]
    assert "(empty)" in body["messages"][1]["content"]


def test_scores_inside_other_text(endpoint):
    endpoint.replies = [says('Sure!\n```json\n{"reason": "fine",\n "score": "4.5"}\n```')]
    assert judge(endpoint).verdict(EXAMPLE, "x").score == 4.5


def test_busy_endpoints_and_replies_without_a_score_are_asked_again(endpoint):
    endpoint.replies = [(429, "slow down"), says("I would say four."), says('{"score": 4}')]
    assert judge(endpoint).verdict(EXAMPLE, "x").score == 4
    assert len(endpoint.seen) == 3


@pytest.mark.parametrize(
    ("reply", "message", "requests"),
    [
        (says('{"score": 7}'), "gave no score in 3 attempts: the score 7 is not between", 3),
        (says('{"score": NaN}'), "gave no score in 3 attempts: no score in the reply", 3),
        ((503, "down"), "HTTP 503: down", 3),
        ((401, "wrong key"), "refuses: HTTP 401: wrong key", 1),
        ((302, ""), "refuses: HTTP 302", 1),
        ((200, "<html>"), "does not speak", 1),
        ((200, "[]"), "does not speak", 1),
    ],
)
def test_failures_say_what_happened(endpoint, reply, message, requests):
    endpoint.replies = [reply]
    with pytest.raises(InputError, match=message):
        judge(endpoint, key="secret").verdict(EXAMPLE, "x")
    assert len(endpoint.seen) == requests


def test_nobody_listens():
    with pytest.raises(InputError, match="no connection"):
        Judge("http://127.0.0.1:9", "m", attempts=1).verdict(EXAMPLE, "x")


@pytest.mark.parametrize(
    "url", ["api.openai.com/v1", "file:///etc/passwd", "http://", "http://judge.example/v1", "http://[judge"]
)
def test_bad_addresses_are_refused(url):
    with pytest.raises(InputError, match="the judge's address"):
        Judge(url, "m", key="secret")


def test_the_key_is_not_shown():
    assert "secret" not in repr(Judge("https://judge.example/v1", "m", key="secret"))


def test_many_verdicts_come_in_order(endpoint):
    endpoint.replies = [says('{"score": 1}')]
    assert [v.score for v in judge(endpoint).verdicts([(EXAMPLE, str(i)) for i in range(9)])] == [1] * 9
    endpoint.replies = [(401, "no")]
    with pytest.raises(InputError, match="401"):
        list(judge(endpoint).verdicts([(EXAMPLE, "x")] * 3))
