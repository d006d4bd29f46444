"""Which models are accepted: every family's verdict, what accepted ones are held to, and how the probe behaves."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, LlamaForCausalLM

import lcc
from benchmarks.families.models import ATTENTION, FAMILIES, HEAD, MASK, SIZES, TURN, AllFloat64
from lcc.modeling import fingerprint as fingerprint_module
from lcc.modeling.architecture import COMPARISONS, SHARING, check_architecture, verdict
from lcc.modeling.comparisons import Probed
from lcc.modeling.model_copy import share_weights
from lcc.utils.hashing import tensor_digest
from tests.lcc.modeling.refusal import refuse

ACCEPTED = [name for name, family in FAMILIES.items() if family.refused is None]
REFUSED = [name for name, family in FAMILIES.items() if family.refused is not None]
BLIND = "computes the same whatever it reads"


pytestmark = pytest.mark.usefixtures("no_verdicts")


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
