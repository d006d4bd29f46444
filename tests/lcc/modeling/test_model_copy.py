"""Work on a model is done on a copy over its weights: other threads never see it, and the model is as it came."""

from __future__ import annotations

import threading
from collections import Counter

import pytest
import torch

import lcc
from lcc.inference.conversation import Conversation
from lcc.modeling.architecture import supports_sharing
from lcc.modeling.model_copy import share_weights, with_body_in, with_first_layers, without_dropout
from lcc.modeling.prefill import prefill
from tests.lcc.memory.test_memory import QUESTIONS
from tests.support.tiny_models import tiny_model


def fields(model) -> dict[str, object]:
    """What a module could be changed in, by name."""
    state: dict[str, object] = {"implementation": model.config._attn_implementation}
    for name, module in model.named_modules():
        state[name] = (type(module), module.training, sorted(vars(module)), vars(module).get("forward"))
    return state | {name: (id(p), p.requires_grad, p._version) for name, p in model.named_parameters()}


@pytest.mark.parametrize("family", ["llama", "qwen2", "phi3"])
def test_a_copy_shares_weights_and_nothing_else(family):
    model = tiny_model(family, tie_word_embeddings=family == "llama")
    copied, before = share_weights(model), fields(model)
    ids = torch.arange(12)[None]
    assert torch.equal(copied(ids).logits, model(ids).logits)
    pairs = [
        *zip(model.parameters(), copied.parameters(), strict=True),
        *zip(model.buffers(), copied.buffers(), strict=True),
    ]
    assert all(a.data_ptr() == b.data_ptr() for a, b in pairs)
    assert not any(parameter.requires_grad for parameter in copied.parameters())
    assert {id(module.config) for module in copied.modules() if hasattr(module, "config")} == {id(copied.config)}
    assert not {*map(id, model.modules())} & {*map(id, copied.modules())}
    tied = copied.get_input_embeddings().weight is copied.get_output_embeddings().weight
    assert tied == (family == "llama")
    copied.config._attn_implementation = "eager"
    copied.train().lm_head.forward = None
    assert fields(model) == before
    with torch.no_grad():
        model.lm_head.weight.mul_(2)
    assert torch.equal(copied.lm_head.weight, model.lm_head.weight)


def test_a_copy_is_not_copied_again():
    copied = share_weights(tiny_model("llama"))
    assert share_weights(copied) is copied


def test_offloaded_weights_are_shared_too():
    from accelerate import cpu_offload

    model = tiny_model("llama")
    ids = torch.arange(6)[None]
    with torch.no_grad():
        expected = model(ids).logits
        cpu_offload(model, torch.device("cpu"))
        copied = share_weights(model)
        assert torch.equal(copied(ids).logits, expected)
    held = [module._hf_hook.weights_map for module in (model.lm_head, copied.lm_head)]
    assert held[0] is held[1]


def test_a_compiled_forward_stays_the_models_own(llama, tokenizer, text, fast):
    """``model.forward = torch.compile(model.forward)`` is what many do: the copy computes the same without it."""
    memory = lcc.compile(llama, tokenizer, text, **fast)
    expected = lcc.ask(llama, tokenizer, memory, QUESTIONS, max_new_tokens=4)
    llama.forward = torch.compile(llama.forward, backend="eager")
    assert lcc.ask(llama, tokenizer, memory, QUESTIONS, max_new_tokens=4) == expected
    assert torch.equal(lcc.compile(llama, tokenizer, text, **fast).kv.keys, memory.kv.keys)
    assert "forward" in vars(llama)


def test_a_config_that_asks_for_tuples_changes_nothing(llama, tokenizer, text, fast):
    memory = lcc.compile(llama, tokenizer, text, **fast)
    expected = lcc.ask(llama, tokenizer, memory, QUESTIONS, max_new_tokens=4)
    llama.config.return_dict = False
    assert torch.equal(lcc.compile(llama, tokenizer, text, **fast).kv.keys, memory.kv.keys)
    assert lcc.ask(llama, tokenizer, memory, QUESTIONS, max_new_tokens=4) == expected
    assert llama.config.return_dict is False


def test_a_forward_that_runs_another_model_is_refused(llama, tokenizer, text, fast):
    own = llama.forward

    def forward(*arguments, **options):
        return own(*arguments, **options)

    llama.forward = forward
    with pytest.raises(lcc.InputError, match=r"forward of LlamaForCausalLM was replaced by a function: take that off"):
        lcc.compile(llama, tokenizer, text, **fast)


def dropping(model: torch.nn.Module) -> torch.nn.Module:
    """The model in train mode, with dropout in its attention."""
    for module in model.train().modules():
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.5
    return model


def test_train_mode_changes_no_answer(llama, tokenizer, text, fast):
    memory = lcc.compile(llama, tokenizer, text, **fast)
    expected = [lcc.ask(llama, tokenizer, memory, asked, max_new_tokens=6) for asked in (QUESTIONS[:1], QUESTIONS)]
    kv = prefill(llama, memory.prefix_ids)
    dropping(llama)
    assert [
        lcc.ask(llama, tokenizer, memory, asked, max_new_tokens=6) for asked in (QUESTIONS[:1], QUESTIONS)
    ] == expected
    assert torch.equal(prefill(llama, memory.prefix_ids).keys, kv.keys)
    again = lcc.compile(llama, tokenizer, text, **fast)
    assert torch.equal(again.kv.keys, memory.kv.keys)
    assert llama.training
    assert without_dropout(llama) is not llama
    assert without_dropout(llama.eval()) is llama


@pytest.mark.parametrize("block", [torch.no_grad, torch.inference_mode])
def test_compile_trains_inside_any_block(llama, tokenizer, text, fast, block):
    expected = lcc.compile(llama, tokenizer, text, **fast)
    with block():
        memory = lcc.compile(llama, tokenizer, text, **fast)
        lcc.plan(llama, tokenizer, text, **{name: value for name, value in fast.items() if name != "progress"})
        assert not torch.is_grad_enabled()
    assert torch.equal(memory.kv.keys, expected.kv.keys)
    assert not memory.kv.keys.requires_grad
    assert not memory.kv.keys.is_inference()


def test_weights_that_no_gradient_flows_through_are_refused(tokenizer, text, fast):
    with torch.inference_mode():
        model = tiny_model("llama")
    with pytest.raises(lcc.InputError, match=r"loaded inside torch\.inference_mode"):
        lcc.compile(model, tokenizer, text, **fast)


def test_threads_share_a_model(llama, tokenizer, text, fast):
    """Several ask, one talks, one compiles, one generates by itself: each gets what it gets alone."""
    options = fast | {"certify": False}
    memory = lcc.compile(llama, tokenizer, text, **options)
    ids = torch.tensor([tokenizer(QUESTIONS[0]).input_ids])
    before = fields(llama)

    def generate():
        return llama.generate(ids, max_new_tokens=6, do_sample=False).tolist()

    def talk():
        talking = Conversation(llama, tokenizer, memory)
        return [talking.say(question, max_new_tokens=4) for question in QUESTIONS]

    def compile_again():
        return lcc.compile(llama, tokenizer, text, **options).kv.keys.tolist()

    jobs = {
        "ask": lambda: lcc.ask(llama, tokenizer, memory, QUESTIONS, max_new_tokens=6),
        "talk": talk,
        "generate": generate,
        "compile": compile_again,
        "beams": lambda: lcc.ask(llama, tokenizer, memory, QUESTIONS, max_new_tokens=4, num_beams=3),
    }
    expected = {name: job() for name, job in jobs.items()}
    outcomes: Counter = Counter()

    def work(name, times):
        for _ in range(times):
            try:
                outcomes[name, jobs[name]() == expected[name]] += 1
            except Exception as error:
                outcomes[name, repr(error)] += 1

    threads = [
        threading.Thread(target=work, args=(name, 2 if name == "compile" else 8)) for name in [*jobs, "ask", "compile"]
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {outcome for _, outcome in outcomes} == {True}, outcomes
    assert fields(llama) == before


def test_a_body_of_fewer_bits_keeps_the_head(llama):
    before = fields(llama)
    lowered = with_body_in(llama, torch.bfloat16)
    assert fields(llama) == before
    assert lowered.dtype == torch.bfloat16
    head = lowered.get_output_embeddings().weight
    assert head.data_ptr() == llama.get_output_embeddings().weight.data_ptr()
    ids = torch.arange(20, 40)[None]
    with torch.no_grad():
        whole, rough = llama(ids).logits.log_softmax(-1), lowered(ids).logits.log_softmax(-1)
    assert rough.dtype == torch.float32
    assert 0 < (whole.exp() * (whole - rough)).sum(-1).mean() < 0.05
    assert supports_sharing(lowered)


def test_the_first_layers(llama):
    before = fields(llama)
    shallow = with_first_layers(llama, 1)
    assert fields(llama) == before
    assert len(shallow.model.layers) == shallow.config.num_hidden_layers == 1
    kv = prefill(shallow, range(20, 30))
    assert kv.keys.shape[0] == 1
    assert torch.equal(kv.keys, prefill(llama, range(20, 30)).keys[:1])
