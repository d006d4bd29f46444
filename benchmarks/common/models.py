"""Models of the benchmarks: the embedded one, loaded once a process, and random weights in the shapes of real ones."""

from __future__ import annotations

from functools import cache

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils.logging import disable_progress_bar

from lcc.embedded_model import EMBEDDED, load_embedded

SHAPES = {
    "llama-8b-shape": {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
        "max_position_embeddings": 131072,
        "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
    },
    "smollm2-135m-shape": {
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "vocab_size": 49152,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": True,
        "rope_parameters": {"rope_type": "default", "rope_theta": 100000.0},
    },
}


@cache
def load() -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The embedded model on the CPU, and its tokenizer; no bar shows how they load."""
    disable_progress_bar()
    return load_embedded()


def random_model(shape: str, dtype: torch.dtype, device: str, **changes: int) -> PreTrainedModel:
    """A Llama of random weights in a shape of ``SHAPES``, some of its sizes changed; ``tokenizer_of`` fits it."""
    tokenizer = _embedded_tokenizer()
    special = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = AutoConfig.for_model("llama", **SHAPES[shape] | special | changes)
    with torch.device(device):
        return AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=False).eval()


def tokenizer_of(model: PreTrainedModel) -> PreTrainedTokenizerBase:
    """The embedded model's tokenizer, with as many more tokens, which stand in no text, as ``model`` embeds."""
    tokenizer = _embedded_tokenizer()
    more = model.get_input_embeddings().weight.shape[0] - len(tokenizer)
    tokenizer.add_tokens([f"<unused {number}>" for number in range(more)])
    return tokenizer


def _embedded_tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(EMBEDDED, trust_remote_code=False)
