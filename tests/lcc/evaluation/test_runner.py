"""Running methods over examples: what is asked, stored, resumed and summed up."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from lcc.errors import InputError, MemoryFileError, MismatchError
from lcc.evaluation import Answers, Example, Verdict, evaluate, summarize
from lcc.evaluation.bootstrap import interval, means, resample


class Stub:
    """Answers ``say(example)``; remembers what it was asked."""

    def __init__(self, name, say, identity=None, trained_on=()):
        self.name, self.say, self.identity = name, say, identity or {"weights": "1"}
        self.trained_on = frozenset(trained_on)
        self.asked = []

    def answer(self, context, examples):
        self.asked.append([example.question for example in examples])
        assert {example.context for example in examples} == {context}
        return Answers([self.say(example) for example in examples], 1024, 0.5, self.trained_on)


def right(example):
    return example.answers[0]


def wrong(example):
    return "nothing"


@pytest.fixture
def examples():
    return [
        Example(f"text {text}", f"q{number}?", (f"a{number}",), metric="exact_match")
        for text in range(3)
        for number in range(4)
    ] + [Example("text 0", "2 + 2?", ("4",), task="general", metric="exact_match", general=True)]


def run(methods, examples, folder, **options):
    return evaluate(methods, examples, folder, progress=False, **options)


def test_results_are_lines_of_json(examples, tmp_path):
    results = run([Stub("full_text", right), Stub("memory", wrong, trained_on=["q1?"])], examples, tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert len(lines) == len(results) == 2 * 13
    assert lines[0]["question"] == "q0?"
    assert lines[0]["scores"]["exact_match"] == 1
    assert lines[13]["prediction"] == "nothing"
    assert sum(line["trained_on"] for line in lines) == 3


def test_each_text_is_handed_over_once(examples, tmp_path):
    method = Stub("memory", right)
    run([method], [*examples, examples[0]], tmp_path)
    assert [len(asked) for asked in method.asked] == [5, 4, 4]


def test_one_answer_counts_for_every_task_and_reference(tmp_path):
    example = Example("c", "q?", ("a",))
    method, judge = Stub("memory", right), FakeJudge()
    results = run([method], [example, replace(example, answers=("b",), task="other")], tmp_path, judge=judge)
    assert method.asked == [["q?"]]
    assert [(r.task, r.answers, r.score, r.scores["judge"]) for r in results] == [
        ("questions", ("a",), 0, 0.2),
        ("other", ("b",), 1, 1),
    ]


def test_a_killed_run_goes_on(examples, tmp_path):
    class Killed(Stub):
        def answer(self, context, examples):
            if context == "text 1":
                raise KeyboardInterrupt
            return super().answer(context, examples)

    with pytest.raises(KeyboardInterrupt):
        run([Killed("memory", right)], examples, tmp_path)
    stored = tmp_path / "answers" / "memory.jsonl"
    with stored.open("a") as file:
        file.write('{"key": "torn')
    method = Stub("memory", right)
    assert len(run([method], examples, tmp_path)) == 13
    assert [len(asked) for asked in method.asked] == [4, 4]
    again = Stub("memory", right)
    assert len(run([again], examples[:6], tmp_path)) == 6
    assert not again.asked
    assert len(stored.read_text().splitlines()) == 1 + 13


def test_answers_of_another_model_are_refused(examples, tmp_path):
    run([Stub("memory", right)], examples, tmp_path)
    with pytest.raises(MismatchError, match="differ in weights: name another folder"):
        run([Stub("memory", right, {"weights": "2"})], examples, tmp_path)
    with pytest.raises(MismatchError, match="differ in steps"):
        run([Stub("memory", right, {"weights": "1", "steps": 3})], examples, tmp_path)


def test_damaged_answers_are_refused(examples, tmp_path):
    run([Stub("memory", right)], examples, tmp_path)
    stored = tmp_path / "answers" / "memory.jsonl"
    whole = stored.read_text()
    rows = ("5", "null", "{}", '{"key": "k", "prediction": "p"}')
    for content in ("[]\n", "{}\n", "no json\n", '{"identity": null}\n', *(f"{whole}{row}\n" for row in rows)):
        stored.write_text(content)
        with pytest.raises(MemoryFileError, match="is damaged"):
            run([Stub("memory", right)], examples, tmp_path)


@pytest.mark.parametrize("name", ["results.jsonl", "answers/memory.jsonl", "verdicts.jsonl"])
@pytest.mark.parametrize("content", ["the only copy", "the only copy\n", "{}\n", '["key"]\n'])
def test_what_is_no_result_is_kept(name, content, examples, tmp_path):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(content)
    with pytest.raises(MemoryFileError, match=r"no results|damaged|something else"):
        run([Stub("memory", right)], examples, tmp_path, judge=FakeJudge())
    assert path.read_text() == content


@pytest.mark.parametrize("name", ["results.jsonl", "answers/memory.jsonl", "verdicts.jsonl", "answers"])
def test_no_link_is_followed(name, examples, tmp_path):
    path, target = tmp_path / "out" / name, tmp_path / "target"
    path.parent.mkdir(parents=True)
    path.symlink_to(target)
    with pytest.raises(MemoryFileError, match=f"is a link to {target}"):
        run([Stub("memory", right)], examples, tmp_path / "out", judge=FakeJudge())
    assert not target.exists()


def test_a_torn_first_line_is_written_again(examples, tmp_path):
    run([Stub("memory", right)], examples, tmp_path)
    path = tmp_path / "answers" / "memory.jsonl"
    path.write_bytes(path.read_bytes()[:9])
    assert len(run([Stub("memory", right)], examples, tmp_path)) == 13


def test_bad_calls_are_refused(examples, tmp_path):
    with pytest.raises(InputError, match="nothing to evaluate"):
        run([], examples, tmp_path)
    with pytest.raises(InputError, match="nothing to evaluate"):
        run([Stub("memory", right)], [], tmp_path)
    with pytest.raises(InputError, match="same name"):
        run([Stub("memory", right), Stub("memory", wrong)], examples, tmp_path)
    for name in ("../memory", "a b", ""):
        with pytest.raises(InputError, match="it names a file"):
            run([Stub(name, right)], examples, tmp_path)
    with pytest.raises(InputError, match="name its endpoint"):
        run([Stub("memory", right)], [Example("c", "q", ("a",), metric="judge")], tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(MemoryFileError, match="cannot make the folder"):
        run([Stub("memory", right)], examples, tmp_path / "file")


class FakeJudge:
    def __init__(self, broken_after=99):
        self.identity = {"judge": "fake"}
        self.asked, self.left = 0, broken_after

    def verdicts(self, answered):
        for example, answer in answered:
            if not self.left:
                raise InputError("gone")
            self.asked, self.left = self.asked + 1, self.left - 1
            yield Verdict(5.0 if answer in example.answers else 1.0, "because")


def test_the_judge_is_asked_once_an_answer_and_goes_on(examples, tmp_path):
    methods = [Stub("full_text", right), Stub("memory", right), Stub("no_text", wrong)]
    with pytest.raises(InputError, match="gone"):
        run(methods, examples, tmp_path, judge=FakeJudge(broken_after=10))
    judge = FakeJudge()
    results = run(methods, examples, tmp_path, judge=judge)
    assert judge.asked == 2 * 13 - 10
    assert {(r.method, r.scores["judge"]) for r in results} == {("full_text", 1), ("memory", 1), ("no_text", 0.2)}


def test_verdicts_belong_to_their_references(tmp_path):
    example = Example("c", "q?", ("a",))
    run([Stub("memory", lambda _: "a")], [example], tmp_path, judge=FakeJudge())
    judge = FakeJudge()
    (result,) = run([Stub("memory", wrong)], [replace(example, answers=("b",))], tmp_path, judge=judge)
    assert (result.prediction, result.scores["judge"], judge.asked) == ("a", 0.2, 1)


def test_summary(examples, tmp_path):
    half = Stub("memory", lambda e: right(e) if e.question in ("q0?", "q1?", "2 + 2?") else "no", trained_on=["q0?"])
    methods = [Stub("full_text", right), half, Stub("no_text", wrong)]
    lines = {(line.task, line.method): line for line in summarize(run(methods, examples, tmp_path))}
    assert set(lines) == {(t, m) for t in ("questions", "general") for m in ("full_text", "memory", "no_text")}
    memory = lines["questions", "memory"]
    assert (memory.questions, memory.contexts, memory.score, memory.kept) == (12, 3, 0.5, 0.5)
    assert memory.interval[0] < 0.5 < memory.interval[1]
    assert memory.kept_interval == memory.interval
    assert memory.difference == pytest.approx((memory.interval[0] - 1, memory.interval[1] - 1))
    assert memory.agreement == {"full_text": 0.5, "memory": 1, "no_text": 0}
    assert (memory.other_wordings, memory.other_wordings_count) == (pytest.approx(1 / 3), 9)
    assert (memory.kv_bytes, memory.seconds) == (1024, 0.5)
    assert lines["general", "memory"].general
    assert lines["general", "memory"].kept == 1
    assert lines["questions", "full_text"].difference == (0, 0)


def test_summary_of_several_tasks_and_no_bound(tmp_path):
    examples = [Example("c", f"{t}{n}", ("a",), task=t, metric="exact_match") for t in "xy" for n in range(3)]
    lines = summarize(run([Stub("memory", right)], examples, tmp_path))
    assert [(line.task, line.questions) for line in lines] == [("x", 3), ("y", 3), ("all questions", 6)]
    assert (lines[0].kept, lines[0].kept_interval, lines[0].difference) == (None, None, None)
    nothing = summarize(run([Stub("full_text", wrong)], examples, tmp_path / "other"))
    assert (nothing[0].score, nothing[0].kept) == (0, None)


def test_resamples_draw_texts_then_questions():
    groups = ["a"] * 5 + ["b"] * 20
    counts = resample(groups, draws=4000)
    assert set(counts[:, :5].sum(1)) == {0, 5, 10}
    assert set(counts[:, 5:].sum(1)) == {0, 20, 40}
    assert counts.mean() == pytest.approx(1, abs=0.03)
    assert (counts == resample(groups, draws=4000)).all()


def test_intervals_cover_and_know_that_questions_of_a_text_go_together():
    rng = np.random.default_rng(0)
    covered, widths, narrow = 0, [], []
    for trial in range(60):
        effects = rng.normal(0.5, 0.2, size=20)
        values = np.clip(np.repeat(effects, 8) + rng.normal(0, 0.1, 160), 0, 1)
        groups = [str(index) for index in np.repeat(np.arange(20), 8)]
        low, high = interval(means(resample(groups, 500, trial), values))
        covered += low <= 0.5 <= high
        widths.append(high - low)
        low, high = interval(means(resample([str(i) for i in range(160)], 500, trial), values))
        narrow.append(high - low)
    assert covered >= 51
    assert np.mean(widths) > 1.5 * np.mean(narrow)


def test_pairing_narrows_a_difference():
    rng = np.random.default_rng(1)
    full = rng.random(100)
    memory = full - 0.1
    counts = resample([str(i // 10) for i in range(100)])
    low, high = interval(means(counts, memory) - means(counts, full))
    assert high - low == pytest.approx(0, abs=1e-9)
    assert interval(np.array([np.nan, np.inf])) is None
