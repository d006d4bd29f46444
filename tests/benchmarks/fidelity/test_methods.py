"""The peers of the fidelity table: what each writes, reads and keeps, and that it leaves the model as it came."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import lcc
from benchmarks.fidelity.methods import PEERS, Workbench
from benchmarks.fidelity.methods.adapter import Adapter
from benchmarks.fidelity.methods.biased_attention import attending_with
from benchmarks.fidelity.methods.kvpress_methods import PRESSES, installed, moved, pressed
from benchmarks.fidelity.methods.temp_lora import TempLora
from benchmarks.fidelity.methods.workbench import RATES
from lcc.compilers import registry
from lcc.compilers.direct_kv import DirectKV
from lcc.data.samples import Sample
from lcc.errors import InputError, MismatchError
from lcc.modeling.kv import KV
from lcc.modeling.lora import lora_model
from lcc.modeling.prefill import prefill
from lcc.modeling.scoring import Completion, completion_states
from lcc.pipeline.settings import make_settings
from lcc.text.chat_format import ChatFormat
from lcc.training.loss import step_loss
from tests.support.tiny_models import tiny_model
from tests.support.untouched import assert_untouched, state


def close(left: KV, right: KV):
    torch.testing.assert_close(left.keys, right.keys, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(left.values, right.values, atol=1e-4, rtol=1e-4)


def test_direct_kv_starts_as_the_first_tokens(llama, context):
    memory = DirectKV(llama, context)
    expected = prefill(llama, [*context.prefix_ids, *context.context_ids[: context.buffer]])
    close(memory.visible(memory.encode(), keep_prefix=True), expected)


@pytest.mark.parametrize("variant", [{}, {"keep_prefix": False}, {"gradient_checkpointing": True}], ids=str)
@pytest.mark.parametrize("make", [DirectKV, Adapter])
def test_every_memory_has_one_gradient_with_both_engines(make, variant, context):
    model = tiny_model("llama", torch.float64)
    settings = make_settings(**variant)
    asked = [Sample((5, 6, 7), (8, 9), "general", "a"), Sample((5,), (6, 7, 8, 9, 10), "self_study", "b")]
    samples = [replace(s, teacher_hidden=torch.randn(len(s.response_ids), 48, dtype=torch.float64)) for s in asked]
    training, execution = settings.training, settings.execution
    with lora_model(model, 8, 16.0) as layers:
        memory = make(model, context, layers) if make is Adapter else make(model, context)
        parameters = [parameter for group in memory.parameter_groups(training) for parameter in group["params"]]
        with torch.no_grad():
            for parameter in parameters:
                parameter.add_(torch.randn_like(parameter) * 0.1)
        reference = replace(execution, engine="reference", gradient_checkpointing="auto")
        losses = [step_loss(memory, samples, training, way) for way in (execution, reference)]
        torch.testing.assert_close(losses[0], losses[1], rtol=1e-9, atol=0)
        both = [torch.autograd.grad(loss, parameters, materialize_grads=True) for loss in losses]
    assert both[0][0].any()
    for one, other in zip(*both, strict=True):
        assert (one - other).norm() <= 1e-9 * other.norm()


def test_a_memory_that_reads_no_text_refuses_chunks(llama, tokenizer, text, fast):
    with pytest.raises(InputError, match="DirectKV reads no text in chunks"):
        lcc.compile(llama, tokenizer, text, compiler="direct_kv", encode_chunk=64, **fast)


def test_a_checkpoint_of_another_compiler_is_refused(llama, tokenizer, text, fast, tmp_path, monkeypatch):
    monkeypatch.setattr("lcc.pipeline.compile.remove_checkpoint", lambda folder: None)
    job = fast | {"checkpoint": tmp_path / "c", "learning_rate": 0.05}
    lcc.compile(llama, tokenizer, text, compiler="direct_kv", **job)
    with pytest.raises(MismatchError, match="compiler"):
        lcc.compile(llama, tokenizer, text, compiler="lcc", **job)


def test_settings_of_another_compiler_are_left_out_and_others_refused(bench):
    rates = {"learning_rate": 0.5, "buffer_learning_rate": 0.5}
    settings = bench.settings_for(rates, "direct_kv")
    assert settings.training.learning_rate == 0.5
    shared = settings.flat().keys() - {"kv_init", "freeze_first"}
    assert shared == settings.flat().keys() & bench.settings_for(rates).flat().keys()
    assert all(settings.flat()[name] == bench.settings_for(rates).flat()[name] for name in shared)
    assert not {"rank", "buffer_learning_rate"} & settings.flat().keys()
    assert bench.settings_for({}) == bench.settings
    with pytest.raises(InputError, match="unknown setting 'magic'"):
        bench.settings_for({"magic": 1}, "direct_kv")


def test_a_new_adapter_reads_the_prefix_as_the_plain_model_does(llama, context):
    plain = prefill(llama, context.prefix_ids)
    with lora_model(llama, 8, 16.0) as layers:
        adapter = Adapter(llama, context, layers)
        close(adapter.visible(adapter.encode(), keep_prefix=False), plain)
        with torch.no_grad():
            for parameter in adapter.lora:
                parameter.add_(0.3)
        changed = adapter.visible(adapter.encode(), keep_prefix=False)
    assert (changed.values - plain.values).abs().max() > 1e-2


def test_temp_lora_learns_the_text(bench, llama, context):
    method = TempLora("temp_lora", bench, {"learning_rate": 0.02, "steps": 15})
    ids = torch.tensor([[*context.prefix_ids, *context.context_ids]])
    with lora_model(llama, method.lora.rank, method.lora.alpha) as layers:
        adapter = Adapter(llama, context, layers, method.lora)

        def loss():
            with torch.no_grad(), adapter.applied():
                return llama(input_ids=ids, labels=ids).loss.item()

        before = loss()
        method.train(adapter)
        assert loss() < before - 0.5


@pytest.mark.parametrize("name", ["temp_lora", "synthetic_qa_lora"])
def test_adapters_answer_and_are_gone(name, bench, llama, text, examples):
    before = state(llama)
    method = PEERS[name].build(name, bench, PEERS[name].default)
    found = method.answer(text, examples)
    assert_untouched(llama, before)
    assert len(found.texts) == len(examples)
    prefix = prefill(llama, ChatFormat.of(bench.tokenizer).prefix_ids)
    projections = [layer.self_attn for layer in llama.model.layers]
    lora = sum(
        8 * (linear.in_features + linear.out_features) * 4
        for attention in projections
        for linear in (attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj)
    )
    assert found.kv_bytes == prefix.nbytes + lora
    assert bool(found.trained_on) == (name == "synthetic_qa_lora")


def test_every_compilers_memory_and_kept_tokens_have_the_same_bytes(embedded, text, examples, tmp_path):
    """With the embedded model, which every learned compiler has weights for."""
    few = {"steps": 1, "batch": 2, "general_queries": 4, "self_study_questions": 4, "max_response_tokens": 8}
    bench = Workbench(*embedded, make_settings(ratio=8, **few), tmp_path)
    compilers = [name for name in registry.names() if PEERS[name].by_ratio]
    names = (*compilers, "first_tokens", "last_tokens", "surprising_tokens")
    held = {name: PEERS[name].build(name, bench, PEERS[name].default).answer(text, examples).kv_bytes for name in names}
    assert len(set(held.values())) == 1, held
    assert set(registry.names()) - set(compilers) == {"adapter"}


def test_truncation_and_pruning_choose_their_tokens(bench, llama, text):
    chat = ChatFormat.of(bench.tokenizer)
    ids = chat.ids(text)
    build = {name: PEERS[name].build(name, bench, {}) for name in ("first_tokens", "last_tokens", "surprising_tokens")}
    assert build["first_tokens"].kept(ids, 7) == ids[:7]
    assert build["last_tokens"].kept(ids, 7) == ids[-7:]
    surprise = []
    with torch.no_grad():
        for index, token in enumerate(ids):
            logits = llama(torch.tensor([[*chat.prefix_ids, *ids[:index]]])).logits[0, -1]
            surprise.append(-logits.log_softmax(-1)[token].item())
        kept = build["surprising_tokens"].kept(ids, 7)
    most = sorted(range(len(ids)), key=lambda index: -surprise[index])[:7]
    assert kept == [ids[index] for index in sorted(most)]


@pytest.mark.parametrize("by", [-5, 3])
def test_moved_keys_stand_where_they_were_moved(llama, context, by):
    full = prefill(llama, context.context_ids[:30]).tail(20)
    close(moved(llama, full, by), full.moved(llama, 10 + by))


@pytest.mark.parametrize("name", PEERS)
def test_options_tell_identities_apart(name, bench):
    peer = PEERS[name]
    rates = (peer.start, 2 * peer.start) if peer.start else (None,)
    several = [peer.options(rate, variant) for variant in peer.variants for rate in rates]
    identities = [str(peer.build(name, bench, options).identity) for options in several]
    assert len(set(identities)) == len(several)
    assert peer.default == several[0]


def test_every_trained_method_can_climb_both_ways():
    trained = {name for name, peer in PEERS.items() if peer.start}
    assert trained == {"lcc", "direct_kv", "temp_lora", "synthetic_qa_lora"}
    assert all(PEERS[name].start in RATES[1:-1] for name in trained)


def test_methods_share_a_documents_distillation_data(bench, text, examples, syntheses):
    for name in ("lcc", "direct_kv", "ragged_matching"):
        PEERS[name].build(name, bench, PEERS[name].default).answer(text, examples)
    assert len(syntheses) == 1
    everything = PEERS["synthetic_qa_lora"].options(1e-2, {})
    PEERS["synthetic_qa_lora"].build("synthetic_qa_lora", bench, everything).answer(text, examples)
    assert len(syntheses) == 1


@pytest.mark.skipif(not installed(), reason="kvpress is not installed")
@pytest.mark.parametrize("name", PRESSES)
def test_presses_keep_no_more_than_a_memory(name, embedded, fast, tmp_path, text, examples):
    model, tokenizer = embedded
    bench = Workbench(model, tokenizer, make_settings(ratio=fast["ratio"]), tmp_path)
    before = state(model)
    limit = PEERS["first_tokens"].build("first_tokens", bench, {}).answer(text, examples).kv_bytes
    for options in PRESSES[name].variants:
        assert 0 < PRESSES[name].build(name, bench, options).answer(text, examples).kv_bytes <= limit
    assert_untouched(model, before)


@pytest.mark.skipif(not installed(), reason="kvpress is not installed")
def test_a_press_that_keeps_everything_changes_nothing(llama, context):
    from kvpress import SnapKVPress

    ids = [*context.prefix_ids, *context.context_ids]
    kept, bias = pressed(llama, SnapKVPress(0.0), ids)
    close(kept, prefill(llama, ids))
    assert bias is None


@pytest.mark.skipif(not installed(), reason="kvpress is not installed")
def test_hidden_pairs_are_hidden_as_kvpress_hides_them(embedded, text):
    from kvpress import KVzipPress

    model, tokenizer = embedded
    chat = ChatFormat.of(tokenizer)
    kept, bias = pressed(model, KVzipPress(0.6, layerwise=False), [*chat.prefix_ids, *chat.ids(text)])
    assert bias.isinf().double().mean() == pytest.approx(0.6, abs=0.02)
    one = [Completion((5, 6), (7, 8))]
    attentions = [layer.self_attn for layer in model.model.layers]
    for attention, of_layer in zip(attentions, bias, strict=True):
        heads, tokens = of_layer.isinf().nonzero(as_tuple=True)
        attention.masked_key_indices = torch.zeros_like(heads), heads, tokens
    with torch.no_grad():
        theirs = completion_states(model, kept, one)
        for attention in attentions:
            del attention.masked_key_indices
        with attending_with(model, bias):
            ours = completion_states(model, kept, one)
        everything = completion_states(model, kept, one)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    assert (everything - ours).abs().max() > 1e-2
