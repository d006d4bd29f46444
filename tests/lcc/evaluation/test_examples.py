"""The JSONL schema, and where examples come from."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict

import pytest

from lcc.errors import InputError
from lcc.evaluation import Example, beside, load_examples, load_general, parse_examples
from lcc.evaluation.datasets import LOADERS, UNANSWERABLE, load_benchmark
from lcc.evaluation.suites import SUITES, general_queries, suite
from lcc.text.queries import load_queries

ROW = {"context": "Mara lives in Alden.", "question": "Where does Mara live?", "answer": "Alden"}


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return str(path)


def test_a_kvpress_row():
    row = ROW | {"answer_prefix": "It is", "max_new_tokens": 8, "length": 4096}
    example = parse_examples([row], "file")[0]
    assert (example.answers, example.answer_prefix, example.max_new_tokens) == (("Alden",), "It is", 8)
    assert example.metric == "f1"
    several = parse_examples([row | {"answer": ["12", "57"], "task": "niah_multivalue"}], "file")[0]
    assert (several.answers, several.metric, several.task) == (("12", "57"), "string_match", "niah_multivalue")


def row_of(example):
    """The JSONL row of an example."""
    row = asdict(example)
    return row | {"answer": row["answers"][0] if len(row["answers"]) == 1 else row["answers"]}


def test_rows_go_round():
    example = Example("c", "q", ("a", "b"), "p", 3, "t", "exact_match", (("x", "y"),), True)
    assert Example.from_row(json.loads(json.dumps(row_of(example))), "here") == example


def test_keys_are_of_what_is_asked():
    example = Example("c", "q", ("a",))
    assert example.key == Example("c", "q", ("b",), metric="rouge_l", task="t").key
    assert len({example.key, Example("d", "q", ("a",)).key, Example("c", "q", ("a",), history=(("x", "y"),)).key}) == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"context": None}, "row 1 has no context"),
        ({"answer": []}, "answers is empty"),
        ({"answer": [1, 2]}, "answer must be text"),
        ({"question": " "}, "question is empty"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"max_new_tokens": "8"}, "max_new_tokens is '8'"),
        ({"max_new_tokens": True}, "max_new_tokens is True"),
        ({"general": "no"}, "general is 'no'"),
        ({"metric": "bleu"}, "unknown metric 'bleu'"),
        ({"history": ["Where?"]}, "history must be"),
        ({"history": [["Where?", 7]]}, "history must be text"),
        ({"context": 7}, "context must be text"),
    ],
)
def test_bad_rows_are_refused(change, message):
    with pytest.raises(InputError, match=message):
        parse_examples([ROW | change], "file")


def test_no_rows_are_refused():
    with pytest.raises(InputError, match="file holds no examples"):
        parse_examples([], "file")


def test_jsonl_files(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(ROW | {"context": "Line\u2028break"}, ensure_ascii=False) + "\n\n", "utf-8")
    assert load_examples(str(path), 1)[0].context == "Line\u2028break"
    for content, message in (("{", "line 1 is not JSON"), ("[1]", "line 1 is no JSON object")):
        path.write_text(content)
        with pytest.raises(InputError, match=message):
            load_examples(str(path), 1)
    path.write_bytes(b"\xff")
    with pytest.raises(InputError, match="not UTF-8"):
        load_examples(str(path), 1)
    with pytest.raises(InputError, match="there is no file"):
        load_examples(str(tmp_path / "absent.jsonl"), 1)


def test_texts_are_drawn_whole(tmp_path):
    rows = [ROW | {"context": f"text {number}", "question": f"q{q}?"} for number in range(8) for q in range(3)]
    source = write(tmp_path / "rows.jsonl", rows)
    drawn = load_examples(source, 3, seed=1)
    assert len(drawn) == 9
    assert len({example.context for example in drawn}) == 3
    assert load_examples(source, 3, seed=1) == drawn
    assert load_examples(source, 3, seed=2) != drawn
    assert {e.context for e in load_examples(source, 3, fits=lambda text: text == "text 4")} == {"text 4"}
    with pytest.raises(InputError, match="none of the 8 texts"):
        load_examples(source, 3, fits=lambda text: False)
    with pytest.raises(InputError, match="at least 1"):
        load_examples(source, 0)


# Rows in the datasets' real columns.
ROWS = {
    "squad": [
        {
            "id": "1",
            "title": "Normans",
            "context": "The Normans were in France.",
            "question": " Where were the Normans?",
            "answers": {"text": ["France", "in France", "France"], "answer_start": [20, 17, 20]},
        },
        {
            "id": "2",
            "title": "Normans",
            "context": "The Normans were in France.",
            "question": "Who was their king?",
            "answers": {"text": [], "answer_start": []},
        },
    ],
    "coqa": [
        {
            "source": "mctest",
            "story": "Asta is a fish.",
            "questions": ["Who is a fish?", "What is she?"],
            "answers": {"input_text": ["Asta", "a fish"], "answer_start": [0, 8], "answer_end": [4, 14]},
        }
    ],
    "booksum": [{"book_id": "Emma", "chapter": "Emma was rich.", "summary_text": "Emma.", "summary_name": "1"}],
    "xsum": [{"document": "A fire broke out.", "summary": "There was a fire.", "id": "1"}],
    "gpqa": [
        {
            "Question": "How many?\n",
            "Correct Answer": "4 ",
            "Incorrect Answer 1": "1",
            "Incorrect Answer 2": "2",
            "Incorrect Answer 3": "3",
        }
    ],
    "alpaca": [{"instruction": "Add.", "input": "1 and 2", "output": "3", "text": "Below is"}],
}


def test_every_loader_reads_its_columns(tmp_path):
    assert ROWS.keys() == LOADERS.keys()
    for name, rows in ROWS.items():
        examples = load_benchmark(name, write(tmp_path / f"{name}.jsonl", rows))
        assert all(Example.from_row(row_of(example), name) == example for example in examples)
        assert {example.task for example in examples} == {name}
        with pytest.raises(InputError, match=f"row 1 of .* is not one of {name}'s"):
            load_benchmark(name, write(tmp_path / "other.jsonl", [{"text": 1}]))


def loaded(tmp_path, name):
    return load_benchmark(name, write(tmp_path / f"{name}.jsonl", ROWS[name]))


def test_squad(tmp_path):
    answered, unanswerable = loaded(tmp_path, "squad")
    assert answered.question.startswith("Where were the Normans? ")
    assert answered.answers == ("France", "in France")
    assert unanswerable.answers == (UNANSWERABLE,)


def test_coqa_keeps_the_conversation(tmp_path):
    first, second = loaded(tmp_path, "coqa")
    assert (first.question, first.history) == ("Who is a fish?", ())
    assert (second.question, second.history, second.answers) == (
        "What is she?",
        (("Who is a fish?", "Asta"),),
        ("a fish",),
    )


def test_gpqa_names_the_right_letter(tmp_path):
    (example,) = loaded(tmp_path, "gpqa")
    assert f"{example.answers[0]}) 4" in example.question
    assert example.general
    assert example.context == ""


def test_alpaca_joins_instruction_and_input(tmp_path):
    (example,) = loaded(tmp_path, "alpaca")
    assert example.question == "Add.\n\n1 and 2"
    assert example.metric == "judge"


def test_general_queries_of_a_benchmark_stand_beside_texts(tmp_path):
    source = "gpqa=" + write(tmp_path / "gpqa.jsonl", ROWS["gpqa"])
    with pytest.raises(InputError, match="--general"):
        load_examples(source, 1)
    asked = load_general(source, 5, ["one text", "another"])
    assert [(e.context, e.task, e.general) for e in asked] == [("one text", "gpqa", True), ("another", "gpqa", True)]
    assert {e.task for e in beside([Example("x", "q", ("a",))], ["text"])} == {"general"}


def test_a_dataset_without_the_library(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InputError, match=r"some/dataset is no file; .* pip install datasets"):
        load_examples("some/dataset", 1)


def test_a_dataset_folder(tmp_path):
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_list(ROWS["coqa"]).save_to_disk(str(tmp_path / "plain"))
    assert load_examples(f"coqa={tmp_path / 'plain'}", 1) == loaded(tmp_path, "coqa")
    datasets.DatasetDict({"test": datasets.Dataset.from_list([ROW])}).save_to_disk(str(tmp_path / "splits"))
    assert load_examples(str(tmp_path / "splits"), 1) == parse_examples([ROW], "row")
    with pytest.raises(InputError, match="cannot read the validation split"):
        load_examples(f"coqa={tmp_path / 'splits'}", 1)


@pytest.mark.parametrize("name", SUITES)
def test_suites_are_seeded_and_of_the_length_asked_for(name, tokenizer):
    examples = suite(name, 2, seed=0, lengths=(300, 1000))
    assert examples == suite(name, 2, seed=0, lengths=(300, 1000))
    assert not {e.context for e in examples} & {e.context for e in suite(name, 2, seed=1, lengths=(300, 1000))}
    for wanted, text in zip((300, 1000), dict.fromkeys(e.context for e in examples), strict=True):
        assert 0.7 * wanted < len(tokenizer(text).input_ids) < 1.5 * wanted
        assert len({e.key for e in examples if e.context == text}) >= 6
    with pytest.raises(InputError, match="from 100 to 2000"):
        load_examples(name, 1, lengths=(50,))


@pytest.mark.parametrize("name", SUITES)
def test_every_answer_fits(name, tokenizer):
    for example in suite(name, 4, lengths=(1900,)):
        assert max(len(tokenizer(answer).input_ids) for answer in example.answers) < example.max_new_tokens


def test_general_queries_are_not_those_that_compile_asks():
    queries = general_queries(0, 200)
    assert not {query.question for query in queries} & set(load_queries())
    assert len(queries) == 200
