"""Texts beyond the window: how they are split, what their sections learn together, and what is refused."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

import lcc
from lcc.data.samples import Across, DistillationData, Sample
from lcc.data.sections import joined, section_pairs, split_context
from lcc.data.settings import DataSettings
from lcc.evaluation.sectioned_certificate import _merged
from lcc.pipeline.section_data import consistent
from lcc.synthetic.people import document
from lcc.text.context import build_context
from tests.lcc.pipeline.test_compile import fail_at, same
from tests.support.tiny_models import tiny_model

LONG = document(random.Random(3), people=9, attributes=5).text
SECTIONED = {"across_questions": 3, "section_overlap": 12}


@pytest.fixture
def narrow():
    """A model whose window holds about two thirds of the text."""
    return tiny_model("llama", max_position_embeddings=384)


@pytest.fixture
def job(narrow, tokenizer, fast):
    """Compile the long text with the fast settings, overridden."""

    def run(**overrides):
        return lcc.compile(narrow, tokenizer, LONG, **(fast | SECTIONED | overrides))

    return run


def split(model, tokenizer, ratio=8.0, **settings):
    context = build_context(model, tokenizer, LONG, ratio)
    return context, split_context(model, context, ratio, DataSettings(max_response_tokens=8, **settings)).parts


def test_sections_are_the_text_and_each_begins_with_the_end_of_the_one_before(narrow, tokenizer):
    context, sections = split(narrow, tokenizer, section_overlap=12)
    assert len(sections) > 2
    whole = sections[0]
    for section in sections[1:]:
        common = len(whole.context_ids) + len(section.context_ids) - len(joined(whole, section).context_ids)
        assert 0 < common <= 12
        assert tokenizer.decode(section.context_ids[:common]).rstrip().endswith(".")
        whole = joined(whole, section)
    assert whole.context_ids == context.context_ids
    assert len({section.sha256 for section in sections}) == len(sections)
    own = len(context.context_ids) / len(sections)
    assert all(section.buffer == pytest.approx(own / 8, abs=own / 32 + 1) for section in sections)


def test_two_sections_and_all_buffer_tokens_stand_in_the_window(narrow, tokenizer):
    _, sections = split(narrow, tokenizer)
    before = len(sections[0].prefix_ids)
    assert before + 2 * max(len(section.context_ids) for section in sections) + 3 * 8 <= 384
    assert before + sum(section.buffer for section in sections) < 384


def test_a_text_that_fits_is_one_section_unless_another_size_is_asked_for(llama, tokenizer):
    context, sections = split(llama, tokenizer)
    assert sections == (context,)
    assert split(llama, tokenizer, section_tokens=0)[1] == (context,)
    assert len(split(llama, tokenizer, section_tokens=100)[1]) == -(-len(context.context_ids) // 100)


def test_what_no_window_holds_is_refused(narrow, tokenizer):
    with pytest.raises(lcc.InputError, match="read and asked about"):
        split(narrow, tokenizer, section_tokens=0)
    with pytest.raises(lcc.InputError, match="two sections of"):
        split(narrow, tokenizer, section_tokens=200)
    with pytest.raises(lcc.InputError, match=r"buffer tokens of .* sections .* raise the ratio"):
        split(narrow, tokenizer, ratio=1.2)


@pytest.mark.parametrize("count", [2, 3, 7, 40])
def test_pairs_are_no_more_than_twice_the_sections_and_leave_none_out(count):
    pairs = section_pairs(count, 0)
    assert len(pairs) == len(set(pairs)) <= 2 * count
    assert all(0 <= first < second < count for first, second in pairs)
    assert {(number, number + 1) for number in range(count - 1)} <= set(pairs)
    assert pairs == section_pairs(count, 0)


def test_a_long_text_becomes_one_memory_that_any_reader_takes(job, narrow, tokenizer):
    memory = job()
    assert len(memory.sections) > 2
    assert memory.buffer_tokens == sum(section["buffer_tokens"] for section in memory.sections) == len(memory.kv)
    assert memory.source_tokens == len(tokenizer(LONG).input_ids)
    assert memory.certificate["reconstruction"]["tokens"] == sum(section["tokens"] for section in memory.sections)
    assert memory.asking["kept"] > 0 < len(memory.questions)
    assert len(lcc.ask(narrow, tokenizer, memory, ["What pet does Mara have?"])) == 1
    assert same(memory, job())
    assert not same(memory, job(across_weight=0.0))


@pytest.mark.parametrize("compiler", ["lcc", "direct_kv"])
def test_an_interrupted_run_goes_on(job, tmp_path, monkeypatch, compiler):
    whole = job(compiler=compiler)

    def interrupt(_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        fail_at(patch, 3, interrupt)
        with pytest.raises(KeyboardInterrupt):
            job(compiler=compiler, checkpoint=tmp_path / "run", checkpoint_every=100)
    assert same(whole, job(compiler=compiler, checkpoint=tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_a_killed_run_makes_no_data_twice(job, tmp_path, monkeypatch, data_made):
    whole, made = job(), len(data_made)
    with monkeypatch.context() as patch:
        fail_at(patch, 1, lambda _: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            job(checkpoint=tmp_path / "run")
    assert same(whole, job(checkpoint=tmp_path / "run"))
    assert len(data_made) == 2 * made


@pytest.mark.parametrize(
    ("wrong", "said"),
    [({"compiler": "attention_matching"}, "takes none"), ({"compiler": "adapter"}, "takes none"),
     ({"budget": 60}, "leave the budget out")],
)  # fmt: skip
def test_what_goes_with_no_sections_is_refused(job, wrong, said):
    with pytest.raises(lcc.InputError, match=f"compiled in sections.*{said}"):
        job(**wrong)


def test_a_question_that_sections_answer_in_two_ways_is_none_about_the_text():
    def sample(query, answer, stream="self_study"):
        return Sample((1,), (answer,), stream, query)

    first = DistillationData((), (sample("How many?", 4), sample("Who?", 5), sample("Say.", 6, "general")), ())
    second = DistillationData((), (sample("Who?", 5), sample("Say.", 7, "general")), (sample("How many?", 8),))
    across = Across((0, 1), (sample("Older?", 9, "across"),), (sample("Who?", 9, "across"),))
    kept = consistent([first, second], [across])
    assert [[s.query for s in own.train] for own in (*kept.sections, *kept.across)] == [["Say."], ["Say."], ["Older?"]]
    assert not any(own.held_out for own in (*kept.sections, *kept.across))
    alike = consistent([first, replace(second, held_out=())], [])
    assert [len(own.train) for own in alike.sections] == [3, 2]


def test_certificates_of_sections_are_means_over_what_each_was_measured_on():
    def row(count, memory, tokens, kl):
        scores = {"full_text": 1.0, "memory": memory, "no_text": 0.0}
        return {
            "reconstruction": {"tokens": tokens, "accuracy": scores},
            "held_out": {"answers": 2, "tokens": tokens, "kl": {"memory": kl, "no_text": 1.0}},
            "general": None,
            "questions": {"source": "self_asked", "count": count, "referenced": 0, "score": scores, "kept": memory,
                          "missed": [{"question": str(count)}]},
        }  # fmt: skip

    merged = _merged([row(3, 1.0, 10, 0.5), row(1, 0.0, 30, 0.1), row(1, 0.0, 0, 9.0) | {"questions": None}])
    assert merged["questions"]["score"]["memory"] == merged["questions"]["kept"] == pytest.approx(0.75)
    assert merged["questions"]["count"] == 4
    assert [one["question"] for one in merged["questions"]["missed"]] == ["3", "1"]
    assert merged["held_out"]["kl"]["memory"] == pytest.approx((10 * 0.5 + 30 * 0.1) / 40)
    assert merged["reconstruction"]["tokens"] == 40
    assert merged["general"] is None


def test_a_plan_of_sections_counts_all_of_them(narrow, tokenizer, fast):
    settings = {name: value for name, value in fast.items() if name != "progress"}
    whole, sections = split(narrow, tokenizer, section_overlap=12)
    longest = max(sections, key=lambda section: len(section.context_ids))
    planned = lcc.plan(narrow, tokenizer, LONG, **settings | {"section_overlap": 12})
    alone = lcc.plan(narrow, tokenizer, tokenizer.decode(longest.context_ids), **settings)
    assert planned.sections == len(sections)
    assert planned.text_tokens == len(whole.context_ids) < sum(len(section.context_ids) for section in sections)
    assert planned.buffer_tokens == sum(section.buffer for section in sections)
    assert planned.steps == alone.steps
    # Alone, a section's overlap has buffer tokens too.
    assert planned.total_flops == pytest.approx(len(sections) * alone.total_flops, rel=0.03)
    # Beside the other sections the text is encoded by itself, and their K and V are seen.
    assert planned.step_bytes >= alone.step_bytes


def test_an_update_takes_its_text_in_one_piece(narrow, tokenizer, text, fast):
    memory = lcc.compile(narrow, tokenizer, text, certify=False, **fast)
    settings = {name: value for name, value in fast.items() if name != "ratio"}
    with pytest.raises(lcc.InputError, match="section_tokens is 50; it must be left out: an update"):
        lcc.update(narrow, tokenizer, memory, text, section_tokens=50, **settings)
    with pytest.raises(lcc.InputError, match=r"tokens of the memory, and .* take less text in at a time"):
        lcc.update(narrow, tokenizer, memory, LONG, **settings)
