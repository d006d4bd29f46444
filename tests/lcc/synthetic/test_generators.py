"""The generators' answers, checked against the text by other means than they were made."""

from __future__ import annotations

import json
import random
import re

import pytest

from lcc.synthetic import lessons
from lcc.synthetic.dialogue import FEMININE, dialogue, with_pronoun
from lcc.synthetic.needles import hidden_numbers, key_values
from lcc.synthetic.people import ATTRIBUTES, NAMES, document
from lcc.synthetic.reasoning import DESCRIPTIONS, aggregate_questions, comparisons, described_questions


@pytest.fixture(params=[(3, 5), (8, 6), (30, 5)], ids=str)
def doc(request):
    return document(random.Random(3), *request.param)


def read(text: str) -> dict[tuple[str, str], str]:
    """(name, attribute) → value, read off the text's sentences."""
    found = {}
    for sentence in re.findall(r"[^.]+\.", text):
        for key, attribute in ATTRIBUTES.items():
            for statement in attribute.statements:
                pattern = re.escape(statement).replace(r"\{n\}", "(?P<n>[A-Z][a-z]+)").replace(r"\{v\}", r"(?P<v>\w+)")
                if match := re.fullmatch(pattern, sentence.strip()):
                    found[match["n"], key] = match["v"]
    return found


def test_documents_may_have_more_people_than_values():
    doc = document(random.Random(0), 40, 5)
    assert len(doc.names) == 40
    assert read(doc.text) == {(f.name, f.attribute): f.value for f in doc.facts}


def test_lessons_ask_one_question_about_each_fact(tmp_path):
    lessons.main(["--documents", "3", "--people", "2", "4", "--attributes", "3", "3", "--out", str(tmp_path / "rows")])
    rows = [json.loads(line) for line in (tmp_path / "rows").read_text().splitlines()]
    texts = list(dict.fromkeys(row["context"] for row in rows))
    assert len(texts) == 3
    for text in texts:
        facts, asked = read(text), [row for row in rows if row["context"] == text]
        assert 2 * 3 <= len(facts) == len(asked) <= 4 * 3
        for (name, key), value in facts.items():
            questions = {question.format(n=name) for question in ATTRIBUTES[key].questions}
            assert any(row["question"] in questions and row["answer"] == value for row in asked)


def test_described_questions(doc):
    facts = read(doc.text)
    questions = described_questions(doc)
    assert questions
    for question in questions:
        asked = [
            (key, v)
            for key, description in DESCRIPTIONS.items()
            for v in ATTRIBUTES[key].values
            if re.search(re.escape(description.format(v=v)) + r"\b", question.text)
        ]
        ((key, value),) = asked
        (name,) = {name for (name, k), v in facts.items() if (k, v) == (key, value)}
        wording = question.text.replace(DESCRIPTIONS[key].format(v=value), "{n}")
        (target,) = [k for k, attribute in ATTRIBUTES.items() if wording in attribute.questions]
        assert f"{name}: {facts[name, target]}" == question.answer


def test_comparisons(doc):
    facts = read(doc.text)
    for question in comparisons(doc):
        names = re.findall(r"[A-Z][a-z]+", question.text)[1:]
        ages = {name: int(facts[name, "age"]) for name in names}
        told, chosen = question.answer.split(": ")
        assert told == ", ".join(f"{name} {age}" for name, age in ages.items())
        assert ages[chosen] == (max if "older" in question.text else min)(ages.values())
        assert len(set(ages.values())) == 2


def test_aggregates(doc):
    facts = read(doc.text)
    ages = {name: int(value) for (name, key), value in facts.items() if key == "age"}
    for question in aggregate_questions(doc, random.Random(0)):
        if "est person" in question.text:
            pick = max if "oldest" in question.text else min
            assert [f"{age}: {n}" for n, age in ages.items() if age == pick(ages.values())] == [question.answer]
            continue
        if match := re.search(r"older than (\d+)", question.text):
            wanted = [str(age) for age in ages.values() if age > int(match[1])]
        elif match := re.search(r"tell the (\w+)", question.text):
            wanted = [value for (_, key), value in facts.items() if key == match[1]]
        else:
            wanted = list(dict.fromkeys(name for name, _ in facts))
        assert question.answer == (f"{', '.join(wanted)}: {len(wanted)}" if wanted else "0")


def test_dialogues_can_be_followed(doc):
    """Whoever remembers the last person and what was asked of them finds every answer."""
    facts = read(doc.text)
    pronouns = 0
    for seed in range(40):
        name = key = ""
        for turn in dialogue(doc, random.Random(seed), 5):
            named = re.findall(rf"\b({'|'.join(NAMES)})\b", turn.text)
            if named:
                (name,) = named
            else:
                pronouns += 1
                assert re.search(r"\b(she|her)\b" if name in FEMININE else r"\b(he|him)\b", turn.text)
            if not turn.text.startswith("And "):
                wordings = {
                    (wording.format(n=name) if named else with_pronoun(wording, name)): k
                    for k, attribute in ATTRIBUTES.items()
                    for wording in attribute.questions
                }
                key = wordings[turn.text]
            assert facts[name, key] == turn.answer
    assert pronouns > 40


def test_pronouns_take_their_case():
    assert with_pronoun("What is the age of {n}?", "Mara") == "What is the age of her?"
    assert with_pronoun("How old is {n}?", "Hugo") == "How old is he?"
    assert set(NAMES) > FEMININE
    assert len(FEMININE) == 24


def test_needles(doc):
    text, lookups = hidden_numbers(doc, random.Random(1))
    hidden = re.findall(r"The secret number of the (\w+) is (\d+)\.", text)
    assert len(hidden) == 8
    assert re.sub(r"The secret number of the \w+ is \d+\. ?", "", text).strip() == doc.text
    for lookup in lookups:
        (key,) = re.findall(r"of the (\w+)", lookup.text)
        assert tuple(v for k, v in hidden if k == key) == lookup.values
    assert sorted(len(lookup.values) for lookup in lookups) == [1, 1, 1, 1, 1, 3]


def test_key_values():
    text, lookups = key_values(random.Random(0), 300)
    pairs = dict(re.findall(r"(\w+ \w+): (\d+)\.", text))
    assert len(pairs) == 300
    assert {lookup.text: lookup.values for lookup in lookups} == {
        f"What stands after {key}?": (value,) for key, value in pairs.items()
    }
