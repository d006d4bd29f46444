"""What the embedded model is taught: every lesson packs into words that it knows, and training goes on after a kill."""

from __future__ import annotations

import json
import random

import pytest
import torch

from lcc.embedded_model import train
from lcc.embedded_model.curriculum import Group, Stage, curriculum
from lcc.embedded_model.lessons import closed_book_lesson, document_lesson, key_value_lesson, needle_lesson
from lcc.embedded_model.packing import IGNORED, KINDS, Lesson, Packer
from lcc.embedded_model.tokenizer import WINDOW
from lcc.evaluation.suites import SUITES, general_queries, suite

STAGES = {stage.name: stage for stage in curriculum()}


def unknown_pieces(tokenizer, ids) -> set[str]:
    """Tokens that stand for no word of the model's world: bytes, a lone space, <unk>."""
    pieces = tokenizer.convert_ids_to_tokens(ids)
    return {piece for piece in pieces if piece.startswith("<0x") or piece in ("<unk>", "▁")}


@pytest.mark.parametrize("name", STAGES)
def test_every_stage_packs_into_known_words(name, tokenizer):
    groups = STAGES[name].lessons(random.Random(0))
    for group in groups:
        batch = Packer(tokenizer).pack(group.lessons)
        assert not unknown_pieces(tokenizer, batch.input_ids.unique().tolist())
        assert batch.layout.position_ids().max() < WINDOW
        assert {exercise.kind for lesson in group.lessons for exercise in lesson.exercises} <= set(KINDS)
        assert len(batch.layout.documents) == len(group.lessons)
        for rows in batch.layout.documents:
            assert (batch.labels[rows.start : rows.stop] != IGNORED).any()


@pytest.mark.parametrize("name", SUITES)
def test_suites_are_written_in_known_words(name, tokenizer):
    for example in suite(name, 2, lengths=(300, 700)) + general_queries(0, 20):
        for text in (example.context, example.question, *example.answers):
            assert not unknown_pieces(tokenizer, tokenizer(text).input_ids), text


def test_lessons_are_of_every_suite():
    rng = random.Random(0)
    kinds = {
        exercise.kind
        for lesson in (document_lesson(rng, 5, 6, False, True, 2), needle_lesson(rng, 3, 4), key_value_lesson(rng, 20))
        for exercise in lesson.exercises
    }
    assert kinds == set(KINDS)
    assert {exercise.kind for exercise in closed_book_lesson(rng).exercises} == {"unknown", "general"}


def test_what_is_said_to_be_unknown_is():
    for seed in range(20):
        for lesson in (needle_lesson(random.Random(seed), 4, 5), key_value_lesson(random.Random(seed), 200)):
            (question,) = [e.turns[0][0] for e in lesson.exercises if e.kind == "unknown"]
            key = question.removeprefix("What is the secret number of the ").removeprefix("What stands after ")
            assert key[:-1] not in lesson.text.replace(":", "")


def test_labels_are_the_answers(tokenizer):
    lesson = document_lesson(random.Random(1), 4, 5, False, reasoning=2)
    batch = Packer(tokenizer).pack([lesson])
    supervised = batch.labels[batch.labels != IGNORED]
    answers = [answer for exercise in lesson.exercises for _, answer in exercise.turns]
    assert tokenizer.decode(supervised).replace("<|end|>", " ").split() == " ".join(answers).split()


def test_a_packed_exercise_is_read_as_if_it_were_alone(tokenizer):
    """Each lesson's text, then one exercise, through the plain model: the loss of the whole row."""
    rng = random.Random(2)
    lessons = [document_lesson(rng, 3, 3, False), closed_book_lesson(rng)]
    packer, model = Packer(tokenizer), train.build_model(tokenizer).double()
    loss, _ = train.step_loss(model, packer.pack(lessons), tokenizer.eos_token_id)
    total = weight = 0.0
    for lesson in lessons:
        for exercise in lesson.exercises:
            alone = packer.pack([Lesson(lesson.text, (exercise,))])
            scored = alone.labels != IGNORED
            logits = model(alone.input_ids[None]).logits[0][scored]
            total += exercise.weight * torch.nn.functional.cross_entropy(logits, alone.labels[scored], reduction="sum")
            weight += exercise.weight * scored.sum()
    torch.testing.assert_close(loss, total / weight, rtol=1e-6, atol=1e-6)


class KilledError(Exception):
    pass


def test_training_goes_on_after_a_kill_as_if_nothing_had_happened(tmp_path, monkeypatch):
    def lessons(rng):
        return [Group(1.0, [document_lesson(rng, 2, 2, True, reasoning=1)]), Group(0.5, [closed_book_lesson(rng)])]

    stages = (Stage("first", 3, None, lessons), Stage("second", 5, ("question", 0.0), lessons))
    monkeypatch.setattr(train, "LOG_EVERY", 2)
    monkeypatch.setattr(train, "WARMUP_STEPS", 4)
    train.train(tmp_path / "whole", stages)
    real, steps = train.train_step, []

    def killed(*arguments):
        steps.append(1)
        if len(steps) == 6:
            raise KilledError
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(train, "train_step", killed)
        with pytest.raises(KilledError):
            train.train(tmp_path / "killed", stages)
    train.train(tmp_path / "killed", stages)
    whole, resumed = (train.LlamaForCausalLM.from_pretrained(tmp_path / name) for name in ("whole", "killed"))
    for expected, found in zip(whole.parameters(), resumed.parameters(), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
    logs = [(tmp_path / name / "training_log.jsonl").read_text().splitlines() for name in ("whole", "killed")]
    first, second = ([{**json.loads(line), "seconds": 0} for line in log] for log in logs)
    assert first == second
    assert [(row["stage"], row["step"]) for row in first] == [("first", 2), ("second", 2), ("second", 4)]
    assert not (tmp_path / "killed" / "stages" / "unfinished.safetensors").exists()
