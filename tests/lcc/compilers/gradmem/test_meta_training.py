"""Meta-training: it learns, goes on after a kill, and leaves a file that the compiler takes."""

from __future__ import annotations

import json
import random

import pytest
import torch

import lcc
from lcc.compilers import meta_train
from lcc.compilers.gradmem.lessons import Batch, make_lessons, split
from lcc.compilers.gradmem.meta import MetaSettings, MetaTraining, meta_training
from lcc.modeling.prefill import prefill
from lcc.synthetic.people import document
from lcc.text.chat_format import ChatFormat
from lcc.utils.tensor_files import load_tensors

SHORT = {"steps": 4, "evaluate_every": 2, "batch": 3, "warmup": 1, "tokens": 6, "write_rate": 0.2}


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
        assert best == min(point["loss"] for point in points)
        return points, tmp_path / name

    return run


@pytest.mark.parametrize(
    "settings",
    [
        {"form": "kv"},
        {"form": "embeddings", "lora_rank": 2},
        {"form": "embeddings", "projection": False, "text_weight": 0.5},
        {"form": "kv", "grad_mode": "first"},
        {"form": "embeddings", "grad_mode": "none"},
    ],
)
def test_it_learns_and_its_file_is_compiled_with(train, llama, tokenizer, rows, settings):
    before = {name: tensor.clone() for name, tensor in llama.state_dict().items()}
    points, path = train(steps=12, learning_rate=3e-2, **settings)
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
    assert metadata["settings"]["steps"] == 12


def test_it_goes_on_after_a_kill(train, monkeypatch):
    expected, whole = train("whole", lora_rank=2)
    update = MetaTraining._update

    def killed(training):
        if training.step == 3:
            raise KeyboardInterrupt
        update(training)

    with monkeypatch.context() as patch:
        patch.setattr(MetaTraining, "_update", killed)
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
        train(learning_rate=1e20)


def test_settings_that_learn_nothing_are_refused():
    for settings, message in (
        ({"grad_mode": "none", "projection": False}, "learns a projection alone"),
        ({"grad_mode": "first", "lora_rank": 2}, "a LoRA is not learned"),
        ({"writes": 0}, "writes is 0"),
        ({"write_rate": 0.0}, "write_rate is 0"),
    ):
        with pytest.raises(lcc.InputError, match=message):
            MetaSettings(**settings)


def test_lessons_are_read_and_split_by_text(tokenizer, rows):
    chat = ChatFormat.of(tokenizer)
    lessons = make_lessons([*rows, rows[1] | {"answer": "y"}], chat, "rows")
    assert lessons[0].response_ids == (*lessons[0].text_ids, chat.end)
    assert lessons[1].query_ids == tuple(chat.query_ids(rows[1]["question"]))
    for seed in range(5):
        train, held_out = split(lessons, 0.3, seed)
        assert len(train) + len(held_out) == len(lessons)
        assert not {lesson.text_ids for lesson in train} & {lesson.text_ids for lesson in held_out}
        assert held_out
    with pytest.raises(lcc.InputError, match="at least two texts"):
        split(lessons[:1], 0.3, 0)
    for row in ({"context": " "}, {"question": "q", "answer": "a"}, {"context": "c", "question": "q"}):
        with pytest.raises(lcc.InputError, match="rows, row 1 must have context"):
            make_lessons([row], chat, "rows")
    with pytest.raises(lcc.InputError, match="holds no rows"):
        make_lessons([], chat, "rows")


def test_a_batch_is_padded_on_the_right(tokenizer, rows):
    lessons = make_lessons(rows[:3], ChatFormat.of(tokenizer), "rows")
    batch = Batch.of(lessons, 8, 64, torch.device("cpu"))
    longest = max(len(lesson.text_ids) for lesson in lessons)
    assert batch.tokens == -(-longest // 8)
    assert Batch.of(lessons, 8, 2, torch.device("cpu")).tokens == 2
    for row, lesson in enumerate(lessons):
        assert tuple(batch.texts[row][batch.counted[row]].tolist()) == lesson.text_ids
        assert tuple(batch.reads[row][batch.answers[row]].tolist()) == lesson.response_ids
        assert tuple(batch.reads[row][: len(lesson.query_ids)].tolist()) == lesson.query_ids


def test_the_command_line(llama, tokenizer, rows, tmp_path, capsys):
    llama.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    lessons = tmp_path / "lessons.jsonl"
    lessons.write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = ["--model", str(tmp_path / "model"), "--lessons", str(lessons), "--out", str(tmp_path / "learned")]
    options = [part for name, value in SHORT.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    meta_train.main([*command, *options, "--form", "embeddings", "--projection", "no"])
    points = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [point["step"] for point in points] == [0, 2, 4]
    assert load_tensors(tmp_path / "learned", "lcc-gradmem-1")[1]["settings"]["projection"] is False
    with pytest.raises(SystemExit, match="error: batch is 0"):
        meta_train.main([*command, "--batch", "0"])
