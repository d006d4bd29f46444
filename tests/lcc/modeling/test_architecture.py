"""Which models are accepted: every family's verdict, what accepted ones are held to, and how the probe behaves."""

from __future__ import annotations

import copy
import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM, LlamaForCausalLM

import lcc
from benchmarks.families.models import ATTENTION, FAMILIES, HEAD, MASK, SIZES, TURN, AllFloat64
from lcc.modeling import architecture
from lcc.modeling import fingerprint as fingerprint_module
from lcc.modeling.architecture import COMPARISONS, SHARING, check_architecture, supports_sharing, verdict
from lcc.modeling.comparisons import Probed
from lcc.modeling.fingerprint import weights_digest
from lcc.modeling.model_copy import share_weights
from lcc.utils.hashing import tensor_digest
from tests.support.tiny_models import tiny_model

ACCEPTED = [name for name, family in FAMILIES.items() if family.refused is None]
REFUSED = [name for name, family in FAMILIES.items() if family.refused is not None]
BLIND = "computes the same whatever it reads"


@pytest.fixture(autouse=True)
def _no_verdicts(monkeypatch):
    """Every test finds out for itself."""
    monkeypatch.setattr(architecture, "_verdicts", type(architecture._verdicts)())


def refuse(model, words):
    with pytest.raises(lcc.InputError, match=words) as refusal:
        check_architecture(model)
    message = str(refusal.value)
    assert message.startswith(type(model).__name__)
    assert message.endswith("docs/models.md says which")
    assert "\n" not in message


def test_the_page_of_models_says_the_same():
    page = (Path(__file__).parents[3] / "docs" / "models.md").read_text()
    rows = [[cell.strip() for cell in line.split("|")[1:5]] for line in page.splitlines() if line.startswith("| ")][1:]
    assert {name: verdict for name, verdict, *_ in rows} == {
        name: "accepted" if family.refused is None else "refused" for name, family in FAMILIES.items()
    }
    assert all((FAMILIES[name].refused or "") in why for name, _, _, why in rows)


@pytest.mark.parametrize("name", REFUSED)
def test_refused_for_what_it_does(name):
    refuse(FAMILIES[name].model(), FAMILIES[name].refused)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ACCEPTED)
def test_accepted_in_every_dtype(name, dtype):
    check_architecture(FAMILIES[name].model(dtype))


@pytest.mark.parametrize("name", ACCEPTED)
def test_accepted_ones_differ_in_no_comparison(name):
    """Logits, K and V moved, attached anywhere, packed rows, chunks and shared tokens."""
    with torch.no_grad(), AllFloat64():
        probed = Probed.of(share_weights(FAMILIES[name].model(torch.float64)))
        comparisons = [*COMPARISONS, SHARING] if verdict(probed.model).shares else COMPARISONS
        errors = {comparison.failed: comparison.error(probed).max().item() for comparison in comparisons}
    assert max(errors.values()) <= 1e-12, errors


@pytest.fixture
def _digests_as_they_are(monkeypatch):
    """``AllFloat64`` would widen the words that a digest is made of."""

    def digest(tensor):
        with torch._C.DisableTorchFunction():
            return tensor_digest(tensor)

    monkeypatch.setattr(fingerprint_module, "tensor_digest", digest)


@pytest.mark.parametrize("name", ACCEPTED)
@pytest.mark.usefixtures("_digests_as_they_are")
def test_accepted_ones_compile_attach_and_answer(name, tokenizer, fast):
    """Both engines give one loss, and the memory answers the same wherever it stands."""
    model = FAMILIES[name].model(torch.float64)
    text = "Mara lives in the quiet old town of Selby. Hugo works every day as a baker."
    settings = fast | {"steps": 2, "batch": 2, "general_queries": 4, "self_study_questions": 0, "ratio": 4}
    with AllFloat64():
        memories = [
            lcc.compile(model, tokenizer, text, engine=engine, certify=False, **settings)
            for engine in ("packed", "reference")
        ]
        losses = [memory.curve[-1]["loss"] for memory in memories]
        assert losses[0] == pytest.approx(losses[1], rel=1e-9)
        found = [after(model, memories[0], start) for start in (0, 37, 200)]
        for moved in found[1:]:
            torch.testing.assert_close(moved, found[0], rtol=1e-9, atol=1e-9)
        assert len(lcc.ask(model, tokenizer, memories[0], ["Where does Mara live?", "Who?"], max_new_tokens=2)) == 2
    settings.pop("progress")
    assert lcc.plan(model, tokenizer, text, **settings).steps == 2


@torch.no_grad()
def after(model, memory, start):
    """Last hidden states of a few tokens after ``memory``."""
    cache = lcc.attach(model, memory, start)
    positions = start + cache.get_seq_length() + torch.arange(4)
    ids = torch.tensor([[5, 9, 40, 41]])
    return model(input_ids=ids, position_ids=positions[None], past_key_values=cache).logits


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("weights", ["wide", "as initialized"])
def test_one_layer_without_positions_is_found_among_many(dtype, weights):
    """Also where attention is next to uniform, so that no answer depends on positions."""
    layers = {"num_hidden_layers": 16, "no_rope_layers": [1] * 15 + [0]}
    if weights == "wide":
        model = FAMILIES["smollm3"].model(dtype, **layers)
    else:
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model("smollm3", **SIZES | layers)).to(dtype).eval()
    refuse(model, TURN)


def test_a_norm_after_the_turn_is_wrong_with_uneven_weights_alone():
    model = FAMILIES["hunyuan_v1_dense"].model()
    refuse(model, TURN)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.key_layernorm.weight.fill_(1.5)
            layer.self_attn.query_layernorm.weight.fill_(0.8)
    check_architecture(model)


def test_a_window_longer_than_what_is_read_is_found():
    model = FAMILIES["mistral without a window"].model()
    check_architecture(model)
    model.config.sliding_window = 4096
    refuse(model, MASK)
    model.config.sliding_window = 8
    refuse(model, MASK)


class Scaled(LlamaForCausalLM):
    """Llama with other logits."""

    def forward(self, *args, **kwargs):
        out = super().forward(*args, **kwargs)
        out.logits = out.logits * 1.0001
        return out


def test_a_scale_of_the_logits_is_found_to_the_dtypes_precision():
    """bfloat16 has no number between 1 and 1.0078: there, the scale does nothing."""
    model = FAMILIES["llama"].model()
    model.__class__ = Scaled
    refuse(model, HEAD)
    check_architecture(model.bfloat16())


def test_another_attention_of_a_class_of_its_own_is_found(llama):
    """No name says that this layer's scores have a bias, as ALiBi's have."""
    attention = llama.model.layers[1].self_attn
    forward = type(attention).forward

    class Biased(type(attention)):
        def forward(self, hidden_states, attention_mask=None, **options):
            rows, past = hidden_states.shape[1], options.get("past_key_values")
            seen = rows if past is None else rows + past.get_seq_length(self.layer_idx)
            bias = -0.3 * (torch.arange(seen - rows, seen)[:, None] - torch.arange(seen)).float()
            mask = bias.masked_fill(bias > 0, -torch.inf)[None, None]
            return forward(self, hidden_states, attention_mask=mask, **options)

    attention.__class__ = Biased
    refuse(llama, ATTENTION)


@pytest.mark.parametrize("spoil", ["zero", "no attention", "NaN"])
def test_a_model_that_tells_nothing_is_refused(spoil, llama):
    with torch.no_grad():
        for layer in llama.model.layers:
            if spoil == "no attention":
                layer.self_attn.o_proj.weight.zero_()
            else:
                layer.self_attn.v_proj.weight.fill_(0.0 if spoil == "zero" else torch.nan)
    refuse(llama, BLIND)


def test_weights_that_are_not_there_are_refused():
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **SIZES))
    refuse(model, "meta device, so load them first")


def test_offloaded_weights_are_probed_where_they_are(tmp_path):
    FAMILIES["llama"].model().save_pretrained(tmp_path / "model")
    where = {"model.embed_tokens": "cpu", "model.norm": "cpu", "model.rotary_emb": "cpu", "lm_head": "cpu"}
    where |= {f"model.layers.{number}": "disk" if number == 1 else "cpu" for number in range(4)}
    model = AutoModelForCausalLM.from_pretrained(
        tmp_path / "model", device_map=where, offload_folder=str(tmp_path / "offloaded")
    )
    check_architecture(model)
    assert any(parameter.is_meta for parameter in model.parameters())


def test_a_comparison_that_cannot_be_made_is_a_refusal_with_its_cause(llama, monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError("no such kernel\nand more")

    monkeypatch.setattr(llama.model.layers[1].mlp, "forward", fail)
    refuse(llama, r"\(RuntimeError: no such kernel\)")


def test_a_device_without_memory_is_no_verdict(llama, monkeypatch):
    def fail(*args, **kwargs):
        raise torch.OutOfMemoryError("full")

    with monkeypatch.context() as patch:
        patch.setattr(llama.model.layers[1].mlp, "forward", fail)
        with pytest.raises(torch.OutOfMemoryError, match="full"):
            check_architecture(llama)
    check_architecture(llama)


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
