"""Compile: deterministic, resumable, and gone without a trace in the model."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest
import torch

import lcc
from lcc.pipeline.settings import make_settings
from lcc.training import trainer as optimize


def same(left: lcc.Memory, right: lcc.Memory) -> bool:
    def losses(memory):
        return [(point["step"], point["loss"], point["held_out_kl"]) for point in memory.curve]

    equal = torch.equal(left.kv.keys, right.kv.keys) and torch.equal(left.kv.values, right.kv.values)
    return equal and losses(left) == losses(right) and left.questions == right.questions


def state_of(model):
    hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks)) for m in model.modules()]
    flags = [(m.training, type(m)) for m in model.modules()], [p.requires_grad for p in model.parameters()]
    return hooks, flags, set(vars(model)), {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_untouched(model, before):
    hooks, flags, attributes, weights = state_of(model)
    assert (hooks, flags, attributes) == before[:3]
    assert weights.keys() == before[3].keys()
    assert all(torch.equal(weights[name], before[3][name]) for name in weights)


@pytest.fixture
def job(llama, tokenizer, text, fast):
    """Compile with the fast settings, overridden."""

    def run(**overrides):
        return lcc.compile(llama, tokenizer, text, **(fast | overrides))

    return run


def test_memory_describes_itself(job, llama, tokenizer, text):
    memory = job()
    tokens = len(tokenizer(text).input_ids)
    assert memory.source_tokens == tokens
    assert memory.buffer_tokens == -(-tokens // 8)
    assert memory.kv.keys.shape == (3, 2, memory.buffer_tokens, 12)
    assert [point["step"] for point in memory.curve] == [2, 4]
    assert tokenizer.decode(list(memory.prefix_ids)) == "<|bos|><|system|> You are a helpful assistant.<|end|><|user|>"
    memory.verify(llama, tokenizer)


def test_same_seed_same_memory(job):
    first = job()
    torch.manual_seed(123)
    assert same(first, job())
    assert not same(first, job(seed=1))


def test_random_state_of_the_caller_is_kept(job):
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    job()
    assert torch.equal(before, torch.random.get_rng_state())


def test_model_is_left_as_it_came(job, llama):
    llama.train()
    llama.model.layers[0].eval()
    llama.model.layers[1].mlp.up_proj.weight.requires_grad_(False)
    llama.model.register_forward_hook(lambda *_: None)
    before = state_of(llama)
    job()
    assert_untouched(llama, before)


def test_model_is_left_as_it_came_when_compile_raises(job, llama, monkeypatch):
    before = state_of(llama)
    monkeypatch.setattr(optimize, "step_loss", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        job()
    assert_untouched(llama, before)


@pytest.mark.parametrize(
    "overrides",
    [{"loss": "mse"}, {"coupled": True}, {"keep_prefix": False}, {"recipe": "paper", "general_queries": 8}, {"rank": 3},
     {"self_study_questions": 0}, {"general_queries": 0}, {"held_out": 0.0}, {"reconstruction_weight": 0.0},
     {"precision": "bfloat16"}, {"targets": ("q_proj",)}],
    ids=lambda overrides: next(iter(overrides)),
)  # fmt: skip
def test_settings_change_the_memory(job, overrides):
    assert not same(job(), job(**overrides))


def test_early_stop_keeps_the_best_state(job, monkeypatch):
    # The held-out KL falls on: what is kept is the best over all streams, which the other figure tells.
    losses = iter([0.5, 0.3, 0.4, 0.6, 0.2])
    kls = iter([0.5, 0.4, 0.3, 0.2, 0.1])
    monkeypatch.setattr(optimize, "validation", lambda *_: (next(kls), next(losses)))
    stopped = job(steps=50, evaluate_every=1, patience=2)
    assert [point["step"] for point in stopped.curve] == [1, 2, 3, 4]
    monkeypatch.setattr(optimize, "validation", lambda *_: (0.1, 0.1))
    kept = job(steps=50, evaluate_every=2, patience=1)
    assert [point["step"] for point in kept.curve] == [2, 4]
    assert torch.equal(stopped.kv.keys, kept.kv.keys)


def fail_at(monkeypatch, step, outcome):
    """Let the loss of ``step`` be whatever ``outcome`` makes of it."""
    real, calls = optimize.step_loss, iter(range(1, 1000))

    def loss(*arguments):
        value = real(*arguments)
        return outcome(value) if next(calls) == step else value

    monkeypatch.setattr(optimize, "step_loss", loss)


def test_nan_loss_keeps_the_last_good_checkpoint(job, tmp_path, monkeypatch):
    whole = job()
    with monkeypatch.context() as patch:
        fail_at(patch, 4, lambda value: value * float("nan"))
        with pytest.raises(lcc.DivergedError, match="nan at step 3") as error:
            job(checkpoint=tmp_path / "run", checkpoint_every=1)
    assert str(tmp_path / "run") in str(error.value)
    assert same(whole, job(checkpoint=tmp_path / "run"))


def test_interrupt_then_resume_gives_the_same_memory(job, tmp_path, monkeypatch, llama):
    def interrupt(_):
        raise KeyboardInterrupt

    whole, before = job(), state_of(llama)
    with monkeypatch.context() as patch:
        fail_at(patch, 3, interrupt)
        with pytest.raises(KeyboardInterrupt):
            job(checkpoint=tmp_path / "run", checkpoint_every=100)
    assert_untouched(llama, before)
    assert same(whole, job(checkpoint=tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_checkpoint_of_another_run_is_refused(job, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        fail_at(patch, 3, lambda value: value * float("nan"))
        with pytest.raises(lcc.DivergedError):
            job(checkpoint=tmp_path / "run", checkpoint_every=1)
    with pytest.raises(lcc.MismatchError, match="differs in seed"):
        job(checkpoint=tmp_path / "run", seed=3)
    assert same(job(), job(checkpoint=tmp_path / "run"))


def test_compilations_share_their_surrogate_data(job, tmp_path, data_made):
    def shared(**overrides):
        return job(surrogates=tmp_path / "shared", **overrides)

    first = shared()
    assert same(shared(checkpoint=tmp_path / "run"), first)
    assert same(job(), first)
    assert shared(ratio=16, learning_rate=1e-3, batch=2).questions == first.questions
    assert len(data_made) == 2
    shared(seed=1)
    shared(general_weight=0.0)
    assert len(data_made) == 4


def test_damaged_checkpoint_is_refused(job, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        fail_at(patch, 3, lambda value: value * float("nan"))
        with pytest.raises(lcc.DivergedError):
            job(checkpoint=tmp_path / "run", checkpoint_every=1)
    state = tmp_path / "run" / "state.safetensors"
    state.write_bytes(state.read_bytes()[:-3])
    with pytest.raises(lcc.MemoryFileError, match="truncated"):
        job(checkpoint=tmp_path / "run")


CHILD = """
import sys, lcc
from tests.support.tiny_models import FAST, tiny_model
from lcc.embedded_model.tokenizer import build_tokenizer
settings = FAST | {"steps": 12}
text = open(sys.argv[1]).read()
model = tiny_model("llama")
memory = lcc.compile(model, build_tokenizer(), text, checkpoint=sys.argv[2], checkpoint_every=1, **settings)
memory.save(sys.argv[3])
"""


def test_sigkill_then_resume_gives_the_same_memory(job, text, tmp_path):
    (tmp_path / "text").write_text(text)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([os.getcwd(), *filter(None, sys.path)])}
    command = [sys.executable, "-c", CHILD, tmp_path / "text", tmp_path / "run", tmp_path / "memory"]
    child = subprocess.Popen(command, env=environment)
    state = tmp_path / "run" / "state.safetensors"
    while not state.exists() and child.poll() is None:
        time.sleep(0.005)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert state.exists(), "the child ended before its first checkpoint"
    assert not (tmp_path / "memory").exists()
    subprocess.run(command, env=environment, check=True)
    assert same(lcc.Memory.load(tmp_path / "memory"), job(steps=12))


def test_interrupt_inside_an_update_loses_that_step_alone(job, tmp_path, monkeypatch):
    real, calls = torch.optim.AdamW.step, iter(range(1, 100))

    def step(self, *arguments):
        found = real(self, *arguments)
        if next(calls) == 3:
            raise KeyboardInterrupt
        return found

    whole = job()
    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", step)
        with pytest.raises(KeyboardInterrupt):
            job(checkpoint=tmp_path / "run", checkpoint_every=2)
    assert same(whole, job(checkpoint=tmp_path / "run"))


def test_batch_and_questions_grow_with_the_text(job, monkeypatch):
    fast = make_settings("fast")
    assert [fast.for_text(tokens).training.batch for tokens in (100, 1024, 6400)] == [16, 16, 100]
    assert [fast.for_text(tokens).data.self_study_questions for tokens in (100, 1024, 6400)] == [200, 1024, 6400]
    default = make_settings()
    assert default.for_text(6400) == default
    monkeypatch.setattr("lcc.data.settings.LEAST_ASKED", 4)
    monkeypatch.setattr("lcc.training.settings.LEAST_BATCH", 2)
    auto = job(batch="auto", self_study_questions="auto", general_queries=4)
    assert (auto.settings["batch"], auto.settings["self_study_questions"]) == ("auto", "auto")
    given = job(batch=2, self_study_questions=auto.source_tokens, general_queries=4)
    assert same(auto, given)
    for wrong in ({"batch": 0}, {"batch": "some"}, {"self_study_questions": -1}):
        with pytest.raises(lcc.InputError, match=next(iter(wrong))):
            make_settings(**wrong)
