"""How models are probed: nothing is left behind, and a verdict is kept by what it depends on."""

from __future__ import annotations

import copy
import random
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from peft import LoraConfig, get_peft_model

import lcc
from benchmarks.families.models import FAMILIES, TURN
from lcc.modeling import architecture
from lcc.modeling.architecture import check_architecture, supports_sharing, verdict
from lcc.modeling.comparisons import Probed
from lcc.modeling.fingerprint import weights_digest
from lcc.modeling.model_copy import share_weights
from tests.lcc.modeling.refusal import refuse
from tests.support.tiny_models import tiny_model

pytestmark = pytest.mark.usefixtures("no_verdicts")


def test_the_probe_leaves_everything_as_it_was():
    model = FAMILIES["smollm3"].model().train()
    model.requires_grad_(True)
    digest, config = weights_digest(model), copy.deepcopy(model.config)
    attributes = {name: set(vars(module)) for name, module in model.named_modules()}
    torch.manual_seed(5)
    random.seed(5)
    state, python_state = torch.get_rng_state(), random.getstate()
    refuse(model, TURN)
    model_and_copies = weights_digest(model), model.config.to_dict(), model.config._attn_implementation
    assert model_and_copies == (digest, config.to_dict(), config._attn_implementation)
    assert attributes == {name: set(vars(module)) for name, module in model.named_modules()}
    assert torch.equal(torch.get_rng_state(), state)
    assert random.getstate() == python_state
    assert all(module.training for module in model.modules())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    assert torch.is_grad_enabled()


def test_threads_probe_at_the_same_time(llama):
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        expected = llama(ids).logits
    wrong = FAMILIES["smollm3"].model()

    def probe(number):
        architecture._verdicts.clear()
        found = verdict(wrong if number % 3 == 2 else llama).refused
        with torch.no_grad():
            same = torch.equal(llama(ids).logits, expected)
        return found is None, same

    with ThreadPoolExecutor(6) as pool:
        results = list(pool.map(probe, range(24)))
    assert results == [(number % 3 != 2, True) for number in range(24)]


@pytest.fixture
def probes(monkeypatch) -> list[str]:
    """The class of every model that is probed."""
    real, made = architecture._probe, []

    def probe(model):
        made.append(type(model).__name__)
        return real(model)

    monkeypatch.setattr(architecture, "_probe", probe)
    return made


def test_a_verdict_is_kept_by_what_it_depends_on(probes):
    model = FAMILIES["llama"].model()
    for same in (model, model, copy.deepcopy(model), share_weights(model)):
        check_architecture(same)
        assert supports_sharing(same)
    assert len(probes) == 1
    with torch.no_grad():
        model.model.norm.weight.mul_(1.5)
    check_architecture(model)
    assert len(probes) == 2, "other weights"
    check_architecture(model.double())
    assert len(probes) == 3, "another dtype"
    model.config.rms_norm_eps *= 2
    check_architecture(model)
    assert len(probes) == 4, "another config"
    model.set_attn_implementation("eager")
    check_architecture(model)
    assert len(probes) == 5, "another attention implementation"


def test_a_compilation_and_its_answers_probe_once(llama, tokenizer, text, fast, probes):
    memory = lcc.compile(llama, tokenizer, text, **fast)
    lcc.ask(llama, tokenizer, memory, ["Where?", "Who?"], max_new_tokens=2)
    lcc.attach(llama, memory)
    assert probes == ["LlamaForCausalLM"]


def test_verdicts_are_bounded(monkeypatch, probes):
    monkeypatch.setattr(architecture, "KEPT", 2)
    models = [FAMILIES[name].model() for name in ("llama", "qwen2", "qwen3")]
    for model in models:
        check_architecture(model)
    assert len(architecture._verdicts) == 2
    check_architecture(models[0])
    assert len(probes) == 4


def test_the_same_model_in_a_wrapper(llama, probes):
    assert verdict(torch.compile(llama, backend="eager")) == verdict(llama)
    inner = get_peft_model(copy.deepcopy(llama), LoraConfig(r=2, target_modules=["q_proj"])).get_base_model()
    assert verdict(inner) == verdict(llama)
    assert len(probes) == 1


@pytest.mark.parametrize("attention", ["eager", "sdpa", "lcc_shared_prefix"])
def test_however_the_model_attends(attention, llama):
    llama.set_attn_implementation(attention)
    check_architecture(llama)
    assert supports_sharing(llama)
    with torch.autocast("cpu", torch.bfloat16):
        check_architecture(llama)
    assert llama.config._attn_implementation == attention


def test_who_cannot_share_is_accepted_all_the_same():
    """Qwen 2 MoE makes a mask for windows that no layer uses."""
    model = FAMILIES["qwen2_moe"].model()
    check_architecture(model)
    assert not supports_sharing(model)
    assert not supports_sharing(FAMILIES["smollm3"].model())


def test_the_embedded_model_is_accepted_in_every_dtype(embedded):
    model, _ = embedded
    for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
        check_architecture(model.to(dtype))


def test_numbers_of_few_bits_in_products_are_allowed_for(llama):
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        check_architecture(llama)
        refuse(FAMILIES["smollm3"].model(), TURN)
    finally:
        torch.set_float32_matmul_precision(before)


def test_longrope_is_probed_on_one_side_of_its_change():
    model = tiny_model("longrope")
    turn = model.config.rope_parameters["original_max_position_embeddings"]
    assert turn < model.config.max_position_embeddings
    assert max(Probed.of(model).starts) == turn // 2


def test_a_patched_module_is_probed_anew():
    """Of one config and one set of weights: a hook, or a forward of its own, may make a layer another one."""
    plain, patched = (tiny_model("llama") for _ in range(2))
    check_architecture(plain)

    def without_positions(module, args, kwargs):
        cos, sin = kwargs["position_embeddings"]
        return args, kwargs | {"position_embeddings": (torch.ones_like(cos), torch.zeros_like(sin))}

    hook = patched.model.layers[1].self_attn.register_forward_pre_hook(without_positions, with_kwargs=True)
    with pytest.raises(lcc.InputError, match=TURN):
        check_architecture(patched)
    hook.remove()
    check_architecture(patched)
