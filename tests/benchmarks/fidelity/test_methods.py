"""The peers of the fidelity table: what each writes, reads and keeps, and that it leaves the model as it came."""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import product

import pytest
import torch

import lcc
from benchmarks.fidelity.methods import PEERS, Workbench
from benchmarks.fidelity.methods.adapter import Adapter
from benchmarks.fidelity.methods.attention_matching import KEYS, Head, Matching, by_head, least_sum, uniform
from benchmarks.fidelity.methods.biased_attention import Biased, attending_with, biased_attention
from benchmarks.fidelity.methods.kvpress_methods import PRESSES, installed, moved, pressed
from benchmarks.fidelity.methods.memory_embeddings import MemoryEmbeddings, MemoryEmbeddingsCompiler
from benchmarks.fidelity.methods.temp_lora import TempLora
from benchmarks.fidelity.methods.workbench import RATES
from lcc.compilers.direct_kv import DirectKV
from lcc.data.samples import Sample
from lcc.errors import InputError, MismatchError
from lcc.evaluation import Example
from lcc.memory.attachment import attach
from lcc.modeling.kv import KV
from lcc.modeling.lora import lora_model
from lcc.modeling.prefill import prefill
from lcc.modeling.scoring import completion_states
from lcc.pipeline.settings import make_settings
from lcc.text.chat_format import ChatFormat
from lcc.text.context import build_context
from lcc.training.loss import step_loss
from tests.support.tiny_models import tiny_model

SMALL = {"rank": 8, "alpha": 16.0}


@pytest.fixture
def context(llama, tokenizer, text):
    return build_context(llama, tokenizer, text, ratio=8, response_tokens=8)


@pytest.fixture
def bench(llama, tokenizer, fast, tmp_path):
    given = {name: value for name, value in fast.items() if name != "progress"}
    return Workbench(llama, tokenizer, make_settings(**given | SMALL), tmp_path)


@pytest.fixture
def examples(text):
    return [Example(text, question, ("x",), max_new_tokens=4) for question in ("Where does Mara live?", "Who?")]


def state(model):
    flags = [(name, p.requires_grad) for name, p in model.named_parameters()]
    tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    return flags, tensors, [module.training for module in model.modules()]


def assert_untouched(model, before):
    flags, tensors, training = state(model)
    assert (flags, training) == (before[0], before[2])
    assert tensors.keys() == before[1].keys()
    assert all(torch.equal(tensors[name], before[1][name]) for name in tensors)


def close(left: KV, right: KV):
    torch.testing.assert_close(left.keys, right.keys, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(left.values, right.values, atol=1e-4, rtol=1e-4)


def test_direct_kv_starts_as_the_first_tokens(llama, context):
    memory = DirectKV(llama, context)
    expected = prefill(llama, [*context.prefix_ids, *context.context_ids[: context.buffer]])
    close(memory.visible(memory.encode(), keep_prefix=True), expected)


def test_memory_embeddings_start_as_tokens_spread_over_the_text(llama, context):
    memory = MemoryEmbeddings(llama, context)
    count, buffer = len(context.context_ids), context.buffer
    spread = [context.context_ids[index * count // buffer] for index in range(buffer)]
    close(memory.visible(memory.encode(), keep_prefix=True), prefill(llama, [*context.prefix_ids, *spread]))


@pytest.mark.parametrize("compiler", ["direct_kv", MemoryEmbeddingsCompiler.name])
def test_compilers_are_known_by_name(compiler, llama, tokenizer, text, fast, tmp_path):
    before = state(llama)
    rate = {"learning_rate": 0.05, "patience": 0}
    memory = lcc.compile(llama, tokenizer, text, compiler=compiler, checkpoint=tmp_path / "c", **fast | rate)
    assert_untouched(llama, before)
    start = lcc.compile(llama, tokenizer, text, compiler=compiler, **fast | rate | {"learning_rate": 1e-9})
    assert memory.buffer_tokens == start.buffer_tokens == -(-memory.source_tokens // 8)
    assert memory.curve[-1]["held_out_kl"] < start.curve[-1]["held_out_kl"]
    path = tmp_path / "memory.lcc.safetensors"
    memory.save(path)
    loaded = lcc.Memory.load(path)
    assert len(attach(llama, loaded).kv()) == len(loaded.prefix_ids) + loaded.buffer_tokens


@pytest.mark.parametrize("variant", [{}, {"keep_prefix": False}, {"gradient_checkpointing": True}], ids=str)
@pytest.mark.parametrize("make", [DirectKV, MemoryEmbeddings, Adapter])
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
        lcc.compile(llama, tokenizer, text, compiler=MemoryEmbeddingsCompiler.name, **job)


def test_settings_of_another_compiler_are_left_out_and_others_refused(bench):
    rates = {"learning_rate": 0.5, "buffer_learning_rate": 0.5}
    settings = bench.settings_for(rates, "direct_kv")
    assert settings.training.learning_rate == 0.5
    assert settings.flat() == {n: v for n, v in bench.settings_for(rates).flat().items() if n in settings.flat()}
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


def test_kept_tokens_have_the_bytes_of_a_memory(bench, text, examples):
    names = ("lcc", "first_tokens", "last_tokens", "surprising_tokens")
    held = {name: PEERS[name].build(name, bench, PEERS[name].default).answer(text, examples).kv_bytes for name in names}
    assert len(set(held.values())) == 1, held


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
    assert trained == {"lcc", "direct_kv", "memory_embeddings", "temp_lora", "synthetic_qa_lora"}
    assert all(PEERS[name].start in RATES[1:-1] for name in trained)


def test_methods_share_a_documents_distillation_data(bench, text, examples, syntheses):
    for name in ("lcc", "direct_kv", "memory_embeddings", "attention_matching"):
        PEERS[name].build(name, bench, PEERS[name].default).answer(text, examples)
    assert len(syntheses) == 1
    everything = PEERS["synthetic_qa_lora"].options(1e-2, {})
    PEERS["synthetic_qa_lora"].build("synthetic_qa_lora", bench, everything).answer(text, examples)
    assert len(syntheses) == 1


def test_a_bias_counts_a_key_as_often_as_it_says():
    query, key, value = (torch.randn(1, heads, 5, 8, dtype=torch.float64) for heads in (4, 2, 2))
    module = torch.nn.Module()
    module.biased = Biased(torch.tensor([[2.0, 1.0], [1.0, 3.0]], dtype=torch.float64).log())
    found, _ = biased_attention(module, query, key, value, torch.zeros(1, 1, 5, 5, dtype=torch.float64))
    for head, often in enumerate(([0, 0, 1, 2, 3, 4], [0, 1, 1, 1, 2, 3, 4])):
        several, values = key[0, head, often], value[0, head, often]
        for mine in (2 * head, 2 * head + 1):
            expected = (query[0, mine] @ several.T / 8**0.5).softmax(-1) @ values
            torch.testing.assert_close(found[0, :, mine], expected)
    assert torch.equal(module.biased.query, query)


def test_pursuit_finds_the_keys_that_stand_for_several():
    keys, values = torch.randn(3, 8, dtype=torch.float64), torch.randn(7, 4, dtype=torch.float64)
    often = [0, 1, 2, 0, 1, 0, 0]
    queries = torch.randn(200, 8, dtype=torch.float64)
    kept, bias, fitted = Head(queries, keys[often], values).match(3, KEYS["omp"])
    for index, added, value in zip(kept.tolist(), bias, fitted, strict=True):
        mine = [place for place, key in enumerate(often) if key == often[index]]
        torch.testing.assert_close(added.exp().item(), float(len(mine)), atol=1e-4, rtol=0)
        torch.testing.assert_close(value, values[mine].mean(0), atol=1e-4, rtol=0)
    assert {often[index] for index in kept.tolist()} == {0, 1, 2}


@pytest.mark.parametrize("keys", KEYS)
def test_matching_comes_closer_the_more_is_kept_and_all_of_it_changes_nothing(keys, llama, context):
    ids, prefix = [*context.prefix_ids, *context.context_ids], len(context.prefix_ids)
    samples = [Sample((5, 6, 7 + n, 9, 11), (8, 9, 10 + n, 4)) for n in range(40)]
    text = prefill(llama, ids)
    errors = []
    with torch.no_grad():
        expected = completion_states(llama, text, samples)
        for tokens in (2, 8, len(context.context_ids)):
            matching = Matching(llama, text, prefix, samples, KEYS[keys])
            matching.fit(uniform(matching, tokens))
            kv, bias = matching.kept()
            assert kv.keys.shape[2] == bias.shape[2] == prefix + tokens
            assert torch.equal(kv.head(prefix).values, text.head(prefix).values)
            visible = moved(llama, kv, len(kv) - len(ids))
            with attending_with(llama, bias):
                errors.append((completion_states(llama, visible, samples) - expected).abs().max().item())
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 1e-4


def test_the_least_sum_is_that_of_all_choices():
    rng = random.Random(0)
    for total in (0, 3, 8, 40):
        curves = [{size: rng.random() for size in (0, 1, 2, 4, 8)} for _ in range(4)]
        choices = [sizes for sizes in product(*curves) if sum(sizes) <= total]
        best = min(choices, key=lambda sizes: sum(curve[size] for curve, size in zip(curves, sizes, strict=True)))
        assert least_sum(curves, total) == best


def test_budgets_go_to_the_heads_that_matter(context):
    model = tiny_model("llama", torch.float64)
    width = model.config.head_dim
    group = model.config.num_attention_heads // model.config.num_key_value_heads
    with torch.no_grad():
        # Nothing is made of what any head finds but the second K/V head of the second layer.
        for layer, decoder_layer in enumerate(model.model.layers):
            for head in range(model.config.num_attention_heads):
                if (layer, head // group) != (1, 1):
                    decoder_layer.self_attn.o_proj.weight[:, head * width : (head + 1) * width] = 0
        ids, prefix = [*context.prefix_ids, *context.context_ids], len(context.prefix_ids)
        asked = [Sample((5, 6, 7 + n, 9, 11), (8, 9, 10 + n, 4), "self_study", "a") for n in range(20)]
        text = prefill(model, ids)
        samples = [replace(s, teacher_hidden=completion_states(model, text, [s])) for s in asked]
        matching = Matching(model, text, prefix, samples, KEYS["highest_attention"])
        budgets = by_head(matching, 4)
        assert matching.bias.isfinite().all()
        assert torch.equal(matching.kv.values, text.values)
        heads = len(budgets) * len(budgets[0])
        assert sum(map(sum, budgets)) <= 4 * heads
        assert budgets[1][1] == max(map(max, budgets)) > 4
        losses = []
        for several in (budgets, uniform(matching, 4)):
            trial = Matching(model, text, prefix, samples, KEYS["highest_attention"])
            trial.fit(several)
            losses.append(trial.divergence(samples))
            kv, bias = trial.kept()
            assert len(kv) == prefix + max(map(max, several))
            pairs = sum(map(sum, several))
            assert trial.nbytes == 8 * (2 * width * (pairs + heads * prefix) + pairs)
            assert int(bias[:, :, prefix:].isfinite().sum()) == pairs
    assert losses[0] < losses[1]


@pytest.mark.parametrize("options", PEERS["attention_matching"].variants, ids=str)
def test_attention_matching_has_a_memorys_bytes_and_its_biases(options, bench, llama, text, examples):
    before = state(llama)
    method = PEERS["attention_matching"].build("am", bench, options)
    found = method.answer(text, examples)
    assert_untouched(llama, before)
    assert not any(hasattr(layer.self_attn, "biased") for layer in llama.model.layers)
    assert len(found.texts) == len(examples)
    assert found.trained_on
    memory = PEERS["first_tokens"].build("first_tokens", bench, {}).answer(text, examples).kv_bytes
    config = llama.config
    biases = config.num_hidden_layers * config.num_key_value_heads * method.tokens(text) * 4
    held = memory + biases
    assert found.kv_bytes == held if options["budgets"] == "uniform" else found.kv_bytes <= held


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
    with pressed(llama, SnapKVPress(0.0), ids) as kept:
        close(kept, prefill(llama, ids))
