"""Training of consolidators: it learns, goes on after a kill, and leaves a file that the compiler takes."""

from __future__ import annotations

import json
import random

import pytest
import torch

import lcc
from lcc.compilers.flashmem import train as command
from lcc.compilers.flashmem import training
from lcc.compilers.flashmem.consolidator import ReadText
from lcc.compilers.flashmem.lessons import FileLessons, SyntheticLessons
from lcc.compilers.flashmem.training import ConsolidatorSettings, ConsolidatorTraining, consolidator_training
from lcc.modeling.scoring import completion_states, token_divergence
from lcc.synthetic.people import document
from lcc.synthetic.seeds import FRESH
from lcc.text.chat_format import ChatFormat
from lcc.utils.tensor_files import load_tensors

SHORT = {"steps": 3, "evaluate_every": 3, "batch": 1, "warmup": 1, "queries": 2, "rank": 4, "most_ratio": 8.0}
FORMAT = "lcc-flashmem-1"


@pytest.fixture
def rows():
    rng = random.Random(0)
    documents = [document(rng, people=1, attributes=3) for _ in range(3)]
    return [{"context": doc.text, "question": doc.question(doc.facts[0], rng).text, "answer": "x"} for doc in documents]


@pytest.fixture
def lessons(tokenizer, rows):
    return FileLessons(tokenizer, rows, "rows", 0, 2)


@pytest.fixture
def train(llama, tokenizer, lessons, tmp_path):
    """Train, and return the measurements and the file."""

    def run(name="learned", **settings):
        points, settings = [], ConsolidatorSettings(**(SHORT | settings))
        prefix_ids = ChatFormat.of(tokenizer).prefix_ids
        with consolidator_training(llama, prefix_ids, lessons, settings, tmp_path / name) as made:
            made.run(points.append)
        return points, tmp_path / name

    return run


@pytest.mark.parametrize("form", ["per_layer", "last"])
def test_it_learns_and_its_file_is_compiled_with(train, llama, tokenizer, rows, form):
    before = {name: tensor.clone() for name, tensor in llama.state_dict().items()}
    points, path = train(steps=6, form=form, learning_rate=5e-3)
    assert [point["step"] for point in points] == [0, 3, 6]
    assert points[-1]["held_out_8"] + points[-1]["held_out_16"] < points[0]["held_out_8"] + points[0]["held_out_16"]
    assert not path.with_name(f"{path.name}.unfinished").exists()
    assert all(torch.equal(tensor, before[name]) for name, tensor in llama.state_dict().items())
    metadata = load_tensors(path, FORMAT)[1]
    assert (metadata["form"], metadata["settings"]["steps"]) == (form, 6)
    memory = lcc.compile(
        llama, tokenizer, rows[0]["context"], compiler="flashmem", learned=str(path), ratio=8, certify=False,
        progress=False,
    )  # fmt: skip
    assert memory.buffer_tokens == memory.kv.keys.shape[2]


def test_it_goes_on_after_a_kill(train, monkeypatch):
    expected, whole = train("whole", evaluate_every=1)
    update = ConsolidatorTraining.update

    def killed(unfinished):
        if unfinished.step == 2:
            raise KeyboardInterrupt
        return update(unfinished)

    with monkeypatch.context() as patch:
        patch.setattr(ConsolidatorTraining, "update", killed)
        with pytest.raises(KeyboardInterrupt):
            train("learned", evaluate_every=1)
    with pytest.raises(lcc.MismatchError, match="differs in settings: finish that one"):
        train("learned", learning_rate=0.5)
    points, path = train("learned", evaluate_every=1)
    assert [point["step"] for point in points] == [3]
    assert {**points[-1], "seconds": 0} == {**expected[-1], "seconds": 0}
    one, other = (load_tensors(file, FORMAT)[0] for file in (whole, path))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_the_loss_is_the_kl_from_the_text_to_its_latents(llama, tokenizer, lessons, tmp_path):
    """With all weights on one stream it is the mean over the response tokens."""
    settings, chat = ConsolidatorSettings(**SHORT, general_weight=0.0), ChatFormat.of(tokenizer)
    text = lessons.draw(0)
    with consolidator_training(llama, chat.prefix_ids, lessons, settings, tmp_path / "m") as made:
        loss = made.loss(text, 4.0)
        loss.backward()
        read = ReadText.of(llama, made.prefix, text.ids)
        with torch.no_grad():
            written = made.consolidator.write(llama, read, -(-len(text.ids) // 4))
            latents = written.rotated(llama, len(made.prefix)).after(made.prefix)
            about = [sample for sample in text.samples if sample.stream == "self_study"]
            teacher, student = (completion_states(llama, visible, about) for visible in (read.kv, latents))
            torch.testing.assert_close(loss, token_divergence(llama, student, teacher).mean(), rtol=1e-4, atol=1e-5)
    assert all(parameter.grad is None for parameter in llama.parameters())
    assert all(parameter.grad is not None for parameter in made.parameters.values())


def test_a_diverged_training_says_so(train, monkeypatch):
    real = training.state_divergence
    monkeypatch.setattr(training, "state_divergence", lambda *given: real(*given) * torch.nan)
    with pytest.raises(lcc.DivergedError, match="the loss is nan after 0 updates: take a smaller learning rate"):
        train()


def test_settings_out_of_range_are_refused():
    for settings, message in (
        ({"least_ratio": 9.0, "most_ratio": 8.0}, "ratios"),
        ({"rank": 0}, "rank is 0"),
        ({"learning_rate": 0.0}, "learning_rate is 0"),
        ({"form": "first"}, "form is first"),
    ):
        with pytest.raises(lcc.InputError, match=message):
            ConsolidatorSettings(**settings)
    ratios = [ConsolidatorSettings().ratio(random.Random(seed)) for seed in range(200)]
    assert 4 <= min(ratios) < 5
    assert 25 < max(ratios) <= 32


def test_texts_are_the_same_at_each_call_and_held_out_ones_are_never_drawn(tokenizer, lessons):
    for source in (SyntheticLessons(tokenizer, 0, 5), lessons):
        drawn = [source.draw(number) for number in range(8)]
        assert drawn == [source.draw(number) for number in range(8)]
        assert not {text.ids for text in source.held_out()} & {text.ids for text in drawn}
        assert all(any(sample.stream == "self_study" for sample in text.samples) for text in drawn)


def test_synthetic_texts_have_seeds_of_their_own(tokenizer, monkeypatch):
    seeds, real = [], random.Random
    monkeypatch.setattr(random, "Random", lambda seed: seeds.append(seed) or real(seed))
    for seed in (0, 1):
        source = SyntheticLessons(tokenizer, seed, 3)
        source.held_out()
        source.draw(0)
        source.draw(1)
    assert len(set(seeds)) == len(seeds)
    assert min(seeds) == FRESH


def test_the_command_trains_and_says_what_is_wrong(llama, tokenizer, rows, tmp_path, capsys):
    llama.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "lessons.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = ["--model", str(tmp_path / "model"), "--out", str(tmp_path / "out"), "--steps", "2", "--batch", "1"]
    given += ["--evaluate-every", "2", "--rank", "2", "--lessons"]
    command.main([*given, str(tmp_path / "lessons.jsonl")])
    assert [json.loads(line)["step"] for line in capsys.readouterr().out.splitlines()] == [0, 2]
    assert (tmp_path / "out").exists()
    with pytest.raises(SystemExit, match="error: there is no"):
        command.main([*given, str(tmp_path / "missing.jsonl")])
