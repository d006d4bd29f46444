"""``benchmarks.two_streams``: its probes tell a reader from one who knows nothing, and a killed call goes on."""

from __future__ import annotations

import json
import random

import pytest
import torch

from benchmarks.two_streams import __main__ as two_streams
from benchmarks.two_streams import heads
from benchmarks.two_streams.models import MIXES, Spec, lesson, trained
from benchmarks.two_streams.probes import Probe, stem, value_at
from benchmarks.two_streams.report import SCORES, kept, means, plot, table
from benchmarks.two_streams.streams import STREAMS, continuations
from lcc.inference.reader import prefill_chat
from lcc.synthetic.exam import general_exam
from lcc.synthetic.people import document
from lcc.text.chat_format import ChatFormat
from lcc.text.prompts import REPEAT_REQUEST

DOC = document(random.Random(3), people=3, attributes=2)


def test_a_reader_of_the_text_does_what_one_of_nothing_cannot(embedded):
    model, tokenizer = embedded
    chat, general = ChatFormat.of(tokenizer), general_exam(random.Random(0), 4)
    text, nothing = (
        Probe(model, chat, DOC, prefill_chat(model, chat, of)).measure(general, set()) for of in (DOC.text, "")
    )
    for name in ("questions", "question, sentence begun", "repetition, values", "questions after reciting"):
        assert text[name] >= 0.8 > 0.4 >= nothing[name], name
    assert text["questions, fact asked, new wording"] is None
    assert text["questions, fact not asked"] == text["questions"]


def test_heads_are_worth_what_the_text_in_them_is(embedded):
    model, tokenizer = embedded
    chat = ChatFormat.of(tokenizer)
    found = heads.measure(model, chat, prefill_chat(model, chat, DOC.text), DOC, lambda fact: fact.value)
    worth = torch.tensor(found["answering"])
    assert worth.shape == (model.config.num_hidden_layers, model.config.num_key_value_heads)
    assert worth.max() > 0.5
    assert 0 <= found["shared"] <= 1
    assert worth.argmax() // worth.shape[1] not in heads.unread(found["answering"])
    assert heads.unread([[0.0, -0.1], [2.0, 0.0], [0.01, 0.0]]) == [0, 2]


def test_values_are_where_they_are_said_to_be(tokenizer):
    chat = ChatFormat.of(tokenizer)
    for fact in DOC.facts:
        ids = chat.ids(fact.sentence)
        assert chat.ids(stem(fact)) == ids[: value_at(chat, fact.sentence, fact)]
        assert tokenizer.decode(ids[value_at(chat, fact.sentence, fact)]).strip() == fact.value


@pytest.mark.parametrize("mix", MIXES)
def test_a_lesson_states_each_fact_as_its_mix_does(mix):
    exercises = lesson(DOC, random.Random(0), MIXES[mix], True).exercises
    answers = {exercise.turns[0][1] for exercise in exercises if exercise.kind == "question"}
    assert answers <= {MIXES[mix].answer(fact) for fact in DOC.facts}
    repeated = [exercise.turns[0] for exercise in exercises if exercise.kind == "repeat"]
    assert repeated[0] == (REPEAT_REQUEST, DOC.text)
    assert all(sentence in DOC.text for _, sentence in repeated)
    assert (len(repeated) > 1) == MIXES[mix].recalls


def test_a_larger_share_asks_about_the_facts_of_a_smaller_one():
    shares = ("1/4 of the facts", "1/2 of the facts", "all facts")
    few, half, whole = (STREAMS[f"and questions, {share}"].facts(DOC, 0) for share in shares)
    assert few < half < whole == set(DOC.facts)
    assert len(continuations("a b c d e f")) == 2


def test_training_leaves_its_stages_and_is_not_repeated(tokenizer, tmp_path):
    own, taught_on = Spec("values", 32, 1), Spec("quotations")
    first, embedded = (trained(spec, tokenizer, tmp_path, scale=0.01) for spec in (own, taught_on))
    assert [path.name for path in (tmp_path / taught_on.name).iterdir()] == ["documents"]
    assert embedded.config.hidden_size == 128
    assert {path.name for path in (tmp_path / own.name).iterdir()} == {stage.name for stage in own.stages()}
    written = (tmp_path / own.name / "documents" / "model.safetensors").stat().st_mtime_ns
    again = trained(own, tokenizer, tmp_path, scale=0.01)
    assert (tmp_path / own.name / "documents" / "model.safetensors").stat().st_mtime_ns == written
    for expected, found in zip(first.parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_smoke_goes_on_and_reports_every_run(tmp_path, monkeypatch):
    out, image = tmp_path / "rows.json", tmp_path / "plot.png"
    shown = ("two streams", "in the layers that answer", "and sentences", "and questions, all facts")
    monkeypatch.setattr(two_streams, "STREAMS", {name: STREAMS[name] for name in shown})
    given = ["--smoke", "--out", str(out), "--work", str(tmp_path / "work"), "--plot", str(image)]
    two_streams.main(given)
    rows = json.loads(out.read_text())["rows"]
    assert {row["run"] for row in rows if row["model"] == "embedded"} == {"full text", "no text", *shown}
    assert len({row["model"] for row in rows}) == 2
    assert all(row["seen tokens"] < row["text tokens"] / 7 for row in rows if row["run"] in shown)
    assert image.stat().st_size > 0
    out.write_text(json.dumps({"rows": rows[1:]}))
    two_streams.main(given)
    (last,) = json.loads(out.read_text())["rows"][len(rows) - 1 :]
    assert last["run"] == rows[0]["run"]
    assert last["scores"] == rows[0]["scores"]


def test_a_table_line_is_a_mean_over_documents(tmp_path):
    row = {"model": "m", "mix": "values", "width": 8, "layers": 1, "parameters": 10**6}
    rows = [
        {**row, "run": run, "document": document, "scores": dict.fromkeys(SCORES.values(), float(document))}
        for document in (0, 1)
        for run in ("full text", "two streams")
    ]
    assert [mean["scores"]["questions"] for mean in means(rows)] == [0.5, 0.5]
    assert table(rows).splitlines()[-1].startswith("| m | 1.00 M | two streams | 2 | 50% |")
    plot(rows, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").exists()


def test_what_is_kept_is_of_the_same_documents():
    assert kept({0: 0.4}, {0: 0.8, 1: 0.1}) == 0.5
    assert kept({0: 0.4, 1: 0.1}, {0: 0.8, 1: 0.2}) == 0.5
    assert kept({0: 0.0}, {0: 0.0}) == 0.0


def test_a_seed_draws_other_first_weights_under_another_name(tokenizer):
    one, other = (Spec("values", 32, 2, seed=seed) for seed in (0, 1))
    assert (one.name, other.name) == ("values, 32 x 2", "values, 32 x 2, seed 1")
    first, second, again = (spec.untaught(tokenizer).model.embed_tokens.weight for spec in (one, other, one))
    assert torch.equal(first, again)
    assert not torch.equal(first, second)
