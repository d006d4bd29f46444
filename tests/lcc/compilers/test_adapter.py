"""CDLM's adapters: the cache-sharing loss, compiling, and what a question finds."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from torch.nn.functional import kl_div, log_softmax
from typer.testing import CliRunner

import lcc
from lcc.cli import app as cli
from lcc.compilers.adapter import AdapterCompiler, AdapterSettings, without_text
from lcc.evaluation import Example, MemoryMethod, evaluate
from lcc.inference.attached import attached
from lcc.modeling.adapter import AdaptedModel, adaptable_layers
from lcc.modeling.generation import generate_after
from lcc.modeling.prefill import prefill
from lcc.modeling.scoring import completion_states
from lcc.modeling.shared_cache import SharedCache
from lcc.pipeline.settings import make_settings
from lcc.text.chat_format import ChatFormat
from lcc.text.context import build_context
from lcc.training.loss import step_loss, token_weights
from tests.lcc.pipeline.test_compile import assert_untouched, fail_at, state_of
from tests.support.tiny_models import make_data, tiny_model

QUESTIONS = ["Where does Mara live?", "Say: dog cat.", "What is the job of Hugo, the baker?"]
SHARING = pytest.mark.parametrize("cache_sharing", [True, False])


# Data without questions that the model asks itself, which take most of a short compilation.
SHORT = {"compiler": "adapter", "rank": 4, "self_study_questions": 0}


@pytest.fixture(scope="module")
def shared_data(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


@pytest.fixture
def job(llama, tokenizer, text, fast, shared_data):
    def run(**overrides):
        return lcc.compile(llama, tokenizer, text, **(fast | SHORT | {"surrogates": shared_data} | overrides))

    return run


def randomise(memory):
    with torch.no_grad():
        for parameter in memory.lora:
            parameter.copy_(torch.randn_like(parameter) * 0.1)


def naive_loss(model, memory, samples, settings):
    """KL of each sample from a whole pass over [P | query | response], the LoRA where the paper has it."""
    tensors = memory.matrices()
    scale = memory.settings.alpha / memory.settings.rank
    prefix, total = list(memory.context.prefix_ids), 0.0
    weights = token_weights(samples, settings.training).split([len(sample.response_ids) for sample in samples])
    for sample, weight in zip(samples, weights, strict=True):
        ids = torch.tensor([[*prefix, *sample.input_ids]])
        first = len(prefix) + len(sample.query_ids) - 1
        inside = torch.zeros(1, ids.shape[1], 1, dtype=torch.float64)
        inside[:, first if memory.settings.cache_sharing else 0 :] = 1

        def add(name, inputs, out, inside=inside):
            down, up = tensors[name]
            return out + inputs[0] @ down.T @ up.T * scale * inside

        hooks = [
            module.register_forward_hook(lambda _, inputs, out, name=name: add(name, inputs, out))
            for name, module in model.named_modules()
            if name in tensors
        ]
        student = log_softmax(model(ids).logits[0, first:], -1)
        for hook in hooks:
            hook.remove()
        teacher = log_softmax(model.lm_head(sample.teacher_hidden), -1)
        total = total + (kl_div(student, teacher, log_target=True, reduction="none").sum(-1) * weight).sum()
    return total


@SHARING
@pytest.mark.parametrize("family", ["llama", "phi3"])
def test_both_engines_give_the_gradient_of_the_papers_loss(family, cache_sharing, tokenizer, text, monkeypatch):
    model, plain = (tiny_model(family, torch.float64) for _ in range(2))
    settings = make_settings(
        compiler="adapter", general_queries=4, self_study_questions=0, max_response_tokens=4, held_out=0.0,
        rank=2, cache_sharing=cache_sharing, reconstruction_weight=0.25,
    )  # fmt: skip
    context = build_context(model, tokenizer, text, 8)
    data = without_text(make_data(model, context, settings, ["Say: dog.", "Add 1 and 2.", *QUESTIONS]), context)
    samples = [*data.reconstruction, *data.train]
    with AdapterCompiler().trainable(model, context, settings.compiler, 0) as memory:
        randomise(memory)
        expected = naive_loss(plain, memory, samples, settings)
        wanted = torch.autograd.grad(expected, memory.lora, materialize_grads=True)
        assert all(gradient.any() for gradient in wanted)
        for ways in ({"engine": "reference"}, {"engine": "packed"}, {"gradient_checkpointing": True}):
            loss = step_loss(memory, samples, settings.training, replace(settings.execution, **ways))
            torch.testing.assert_close(loss, expected, rtol=1e-9, atol=0)
            found = torch.autograd.grad(loss, memory.lora, materialize_grads=True)
            for ours, naive in zip(found, wanted, strict=True):
                assert (ours - naive).norm() <= 1e-9 * naive.norm()


@SHARING
def test_nothing_to_learn_is_no_loss(cache_sharing, tokenizer, text):
    """A LoRA of zeros, and a teacher that has read no text."""
    model = tiny_model("llama", torch.float64)
    settings = make_settings(compiler="adapter", general_queries=2, self_study_questions=0, max_response_tokens=4)
    context = build_context(model, tokenizer, text, 8)
    data = without_text(make_data(model, context, settings, QUESTIONS), context)
    with torch.no_grad():
        prefix = prefill(model, context.prefix_ids)
        samples = [replace(s, teacher_hidden=completion_states(model, prefix, [s])) for s in data.train]
    with AdapterCompiler().trainable(model, context, AdapterSettings(cache_sharing=cache_sharing), 0) as memory:
        for engine in ("packed", "reference"):
            execution = replace(settings.execution, engine=engine)
            assert step_loss(memory, samples, settings.training, execution).item() == pytest.approx(0, abs=1e-12)
            assert step_loss(memory, data.train, settings.training, execution).item() > 1e-3


def test_it_is_trained_the_same_twice_and_after_a_kill(job, llama, tmp_path, monkeypatch):
    before, whole = state_of(llama), job(certify=False)
    assert_untouched(llama, before)
    assert whole.compiler == {"name": "adapter"}
    assert whole.payload.metadata()["adapter"] | {"targets": None} == {
        "rank": 4, "alpha": whole.settings["alpha"], "targets": None, "cache_sharing": True
    }  # fmt: skip
    with monkeypatch.context() as patch:
        fail_at(patch, 3, lambda _: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            job(checkpoint=tmp_path / "run", checkpoint_every=1, certify=False)
    again = job(checkpoint=tmp_path / "run", certify=False)
    assert all(torch.equal(tensor, whole.tensors()[name]) for name, tensor in again.tensors().items())
    other = job(seed=1, certify=False)
    assert not all(torch.equal(tensor, whole.tensors()[name]) for name, tensor in other.tensors().items())


@SHARING
def test_it_is_read_as_it_was_trained(job, cache_sharing, monkeypatch):
    """The certificate's KL over what was held out is that of training."""
    memory = job(cache_sharing=cache_sharing, steps=6, learning_rate=0.03, held_out=0.5)
    assert memory.best_point["held_out_kl"] < memory.certificate["held_out"]["kl"]["no_text"]
    assert memory.certificate["held_out"]["kl"]["memory"] == pytest.approx(memory.best_point["held_out_kl"], rel=1e-3)
    assert memory.certificate["general"]["from_no_text"]["memory"]["kl"] > 0


def test_a_question_is_read_by_the_plain_model_and_answered_under_the_adapter(job, llama, tokenizer):
    memory = job(certify=False, steps=6, learning_rate=0.1, patience=0)
    before = state_of(llama)
    answers = lcc.ask(llama, tokenizer, memory, QUESTIONS, max_new_tokens=6)
    assert answers == [lcc.ask(llama, tokenizer, memory, [one], max_new_tokens=6)[0] for one in QUESTIONS]
    chat = ChatFormat.of(tokenizer)
    adapted = AdaptedModel(llama, [memory.payload.adapter])
    plain = []
    for question, answer in zip(QUESTIONS, answers, strict=True):
        *read, last = chat.query_ids(question, after_text=False)
        with torch.no_grad():
            question_kv = prefill(llama, [*memory.prefix_ids, *read])
        rows = [
            generate_after(model, SharedCache(question_kv), [[last]], chat.end, max_new_tokens=6)[0]
            for model in (adapted.model, llama)
        ]
        assert tokenizer.decode(rows[0], skip_special_tokens=True).strip() == answer
        plain.append(rows[1] == rows[0])
    assert not all(plain)
    with attached(llama, memory) as held:
        assert torch.equal(held.visible.keys, prefill(llama, memory.prefix_ids).keys)
        assert held.nbytes == held.visible.nbytes + memory.nbytes
    assert_untouched(llama, before)


def test_an_evaluation_reads_it(job, llama, tokenizer, text, tmp_path):
    memory = job(certify=False)
    method = MemoryMethod(llama, tokenizer, lambda _: memory, memory.compiler)
    (result,) = evaluate([method], [Example(text, QUESTIONS[0], ("x",), max_new_tokens=6)], tmp_path, progress=False)
    assert result.prediction == lcc.ask(llama, tokenizer, memory, QUESTIONS[:1], max_new_tokens=6)[0]
    assert result.kv_bytes > memory.nbytes


def test_targets_are_attention_and_mlp_unless_they_are_named(job, llama):
    assert {*job(certify=False, steps=1).payload.adapter.down} == {*adaptable_layers(llama)}
    assert {*job(certify=False, steps=1, targets=("v_proj",)).payload.adapter.down} == {
        f"model.layers.{layer}.self_attn.v_proj" for layer in range(3)
    }


@pytest.mark.parametrize(
    ("options", "cause"),
    [
        ({"keep_prefix": False}, "leave keep_prefix out"),
        ({"budget": "1m"}, "does not go on from the instant memory of a budget"),
        ({"ratio": "auto"}, "no ratio to search"),
        ({"targets": ("lm_head", "v_proj")}, "lm_head, which is no linear layer of the decoder"),
        ({"targets": ("embed_tokens",)}, "no linear layer of the decoder"),
        ({"rank": 0}, "rank is 0"),
        ({"alpha": 0.0}, "alpha is 0"),
        ({"encode_chunk": 16}, "reads no text in chunks"),
    ],
)
def test_refused(job, options, cause):
    with pytest.raises(lcc.InputError, match=cause):
        job(**options)


def test_the_command_line_goes_all_the_way(llama, tokenizer, text, tmp_path):
    llama.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "text").write_text(text)

    def run(*words):
        result = CliRunner().invoke(cli.app, [*map(str, words), "--model", str(tmp_path / "model"), "--json"])
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)

    short = ("general_queries=4", "self_study_questions=0", "rank=2", "max_response_tokens=4", "learning_rate=0.05")
    words = [word for setting in short for word in ("--set", setting)]
    path = tmp_path / "m"
    summary = run("compile", tmp_path / "text", "-o", path, "--compiler", "adapter", "--steps", 2, *words)
    assert (summary["payload"], summary["adapter"]["rank"]) == ("adapter", 2)
    assert run("verify", path)["verified"]
    (answer,) = run("ask", path, QUESTIONS[0])["answers"]
    assert answer["answer"] == lcc.ask(llama, tokenizer, lcc.Memory.load(path), QUESTIONS[:1])[0]
    assert run("export", path, "-o", tmp_path / "lora", "--to", "peft")["bytes"] > 0
    refused = CliRunner().invoke(cli.app, ["chat", str(path), "--model", str(tmp_path / "model")])
    assert refused.exit_code == 2
    assert "kind 'adapter'" in " ".join(refused.output.split())
