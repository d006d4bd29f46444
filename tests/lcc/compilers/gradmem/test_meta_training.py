"""Meta-training: it learns, goes on after a kill, and leaves a file that the compiler takes."""

from __future__ import annotations

import json
import random

import pytest
import torch

import lcc
from lcc.compilers import meta_train
from lcc.compilers.gradmem.lessons import Batch, Lesson, draw, make_lessons, split
from lcc.compilers.gradmem.meta import MetaSettings, MetaTraining, meta_training
from lcc.modeling.prefill import prefill
from lcc.synthetic.people import document
from lcc.text.chat_format import ChatFormat
from lcc.utils.tensor_files import load_tensors

SHORT = {
    "steps": 4, "evaluate_every": 2, "batch": 3, "warmup": 1, "tokens": 6, "write_rate": 0.2, "lora_rank": 0,
    "ratios": (8.0,), "learning_rate": 1e-2, "grad_mode": "second",
}  # fmt: skip


@pytest.fixture
def rows():
    rng = random.Random(0)
    documents = [document(rng, people=1, attributes=3) for _ in range(6)]
    return [
        {"context": doc.text} | ({"question": doc.question(doc.facts[0], rng).text, "answer": "x"} if number else {})
        for number, doc in enumerate(documents)
    ]


@pytest.fixture
def train(llama, tokenizer, rows, tmp_path):
    """Meta-train, and return the measurements and the file."""

    def run(name="learned", **settings):
        chat, settings = ChatFormat.of(tokenizer), MetaSettings(**(SHORT | settings))
        with torch.no_grad():
            prefix = prefill(llama, chat.prefix_ids)
        parts = split(make_lessons(rows, chat, "rows"), 0.3, settings.seed)
        points = []
        with meta_training(llama, prefix, *parts, settings, tmp_path / name) as training:
            best = training.run(points.append)
        assert best == min(point["loss"] for point in training.curve)
        return points, tmp_path / name

    return run


@pytest.mark.parametrize(
    "settings",
    [
        {"form": "kv"},
        {"form": "kv", "start": "learned"},
        {"form": "embeddings", "start": "learned", "lora_rank": 2},
        {"form": "embeddings", "start": "learned", "projection": False, "text_weight": 0.5},
        {"form": "kv", "grad_mode": "first", "lora_rank": 2, "ratios": (8.0, 4.0)},
        {"form": "embeddings", "start": "learned", "grad_mode": "none"},
    ],
)
def test_it_learns_and_its_file_is_compiled_with(train, llama, tokenizer, rows, settings):
    before = {name: tensor.clone() for name, tensor in llama.state_dict().items()}
    points, path = train(**{"steps": 12, "learning_rate": 3e-2} | settings)
    assert points[-1]["loss"] < points[0]["loss"]
    assert [point["step"] for point in points] == [0, 2, 4, 6, 8, 10, 12]
    assert not path.with_name(f"{path.name}.unfinished").exists()
    memory = lcc.compile(
        llama, tokenizer, rows[0]["context"], compiler="gradmem", learned=str(path), ratio=8, certify=False,
        progress=False,
    )  # fmt: skip
    assert len(memory.curve) == 2
    assert all(torch.equal(tensor, before[name]) for name, tensor in llama.state_dict().items())
    tensors, metadata = load_tensors(path, "lcc-gradmem-1")
    assert any(name.startswith("lora.") for name in tensors) == bool(settings.get("lora_rank"))
    assert any(name.startswith("projection.") for name in tensors) == settings.get("projection", True)
    assert any(name.startswith("start.") for name in tensors) == (settings.get("start") == "learned")
    assert metadata["settings"]["steps"] == 12


def test_it_goes_on_after_a_kill(train, monkeypatch):
    expected, whole = train("whole", lora_rank=2)
    update = MetaTraining.update

    def killed(training):
        if training.step == 3:
            raise KeyboardInterrupt
        update(training)

    with monkeypatch.context() as patch:
        patch.setattr(MetaTraining, "update", killed)
        with pytest.raises(KeyboardInterrupt):
            train("learned", lora_rank=2)
    with pytest.raises(lcc.MismatchError, match="differs in settings: finish that one"):
        train("learned", lora_rank=2, learning_rate=0.5)
    points, path = train("learned", lora_rank=2)
    assert [point["step"] for point in points] == [4]
    assert points[-1]["loss"] == expected[-1]["loss"]
    one, other = (load_tensors(file, "lcc-gradmem-1")[0] for file in (whole, path))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_diverged_training_says_so(train):
    with pytest.raises(lcc.DivergedError, match="take a smaller learning rate"):
        train(start="learned", learning_rate=1e20)


def test_settings_that_learn_nothing_are_refused():
    for settings, message in (
        ({"grad_mode": "none", "projection": False, "lora_rank": 0}, "learns a projection alone"),
        ({"grad_mode": "none"}, "a LoRA is not learned with grad_mode 'none'"),
        ({"grad_mode": "first", "form": "embeddings"}, "a LoRA is not learned"),
        ({"grad_mode": "first", "start": "learned"}, "a LoRA is not learned"),
        ({"ratios": (8.0, 0.5)}, "ratios is"),
        ({"ratios": ()}, "ratios is"),
        ({"writes": 0}, "writes is 0"),
        ({"write_rate": 0.0}, "write_rate is 0"),
    ):
        with pytest.raises(lcc.InputError, match=message):
            MetaSettings(**settings)


def test_lessons_are_read_and_split_by_text(tokenizer, rows):
    chat = ChatFormat.of(tokenizer)
    lessons = make_lessons([*rows, rows[1] | {"answer": "y"}], chat, "rows")
    assert len(lessons) == len(rows)
    assert lessons[0].asked[0][1] == (*lessons[0].text_ids, chat.end)
    query = tuple(chat.query_ids(rows[1]["question"]))
    assert lessons[1].asked == tuple((query, (*chat.ids(answer), chat.end)) for answer in ("x", "y"))
    for seed in range(5):
        train, held_out = split(lessons, 0.3, seed)
        assert sorted(lesson.text_ids for lesson in (*train, *held_out)) == sorted(
            lesson.text_ids for lesson in lessons
        )
        assert len(held_out) == 2
        for part in (train, held_out):
            lengths = [len(lesson.text_ids) for lesson in part]
            assert lengths == sorted(lengths)
    with pytest.raises(lcc.InputError, match="at least two texts"):
        split(lessons[:1], 0.3, 0)
    for row in ({"context": " "}, {"question": "q", "answer": "a"}, {"context": "c", "question": "q"}):
        with pytest.raises(lcc.InputError, match="rows, row 1 must have context"):
            make_lessons([row], chat, "rows")
    with pytest.raises(lcc.InputError, match="holds no rows"):
        make_lessons([], chat, "rows")


def test_lessons_of_like_length_are_drawn_together():
    lessons = [Lesson((0,) * length, tuple(((length,), (part,)) for part in range(5))) for length in range(30)]
    seen = set()
    for seed in range(40):
        drawn = draw(random.Random(seed), lessons, 3, 2)
        lengths = [len(lesson.text_ids) for lesson in drawn]
        assert len(set(lengths)) == 3
        assert max(lengths) - min(lengths) < 12
        assert all(len(set(lesson.asked)) == 2 for lesson in drawn)
        seen |= set(lengths)
    assert len(seen) > 25
    assert len(draw(random.Random(0), lessons[:2], 3, 9)) == 2


def test_a_batch_is_padded_on_the_right(tokenizer, rows):
    lessons = make_lessons([*rows[:3], rows[1] | {"answer": "y"}], ChatFormat.of(tokenizer), "rows")
    batch = Batch.of(lessons, 8, torch.device("cpu"))
    longest = max(len(lesson.text_ids) for lesson in lessons)
    assert batch.tokens == -(-longest // 8)
    assert batch.owners.tolist() == [0, 1, 1, 2]
    for row, lesson in enumerate(lessons):
        assert tuple(batch.texts[row][batch.counted[row]].tolist()) == lesson.text_ids
    for row, (query, response) in enumerate(pair for lesson in lessons for pair in lesson.asked):
        assert tuple(batch.reads[row][batch.answers[row]].tolist()) == response
        assert tuple(batch.reads[row][: len(query)].tolist()) == query


def test_the_command_line(llama, tokenizer, rows, tmp_path, capsys):
    llama.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    lessons = tmp_path / "lessons.jsonl"
    lessons.write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = ["--model", str(tmp_path / "model"), "--lessons", str(lessons), "--out", str(tmp_path / "learned")]
    given = SHORT | {"ratios": "8,4"}
    options = [part for name, value in given.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    meta_train.main([*command, *options, "--form", "embeddings", "--projection", "no"])
    points = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [point["step"] for point in points] == [0, 2, 4]
    settings = load_tensors(tmp_path / "learned", "lcc-gradmem-1")[1]["settings"]
    assert (settings["projection"], settings["ratios"]) == (False, [8, 4])
    with pytest.raises(SystemExit, match="error: batch is 0"):
        meta_train.main([*command, "--batch", "0"])
