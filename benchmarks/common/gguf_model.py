"""GGUF files of small models, laid out as llama.cpp's converter does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np

NAMES = {
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
    "self_attn.qkv_proj": "attn_qkv", "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.gate_up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
    "model.layers": "blk",
}  # fmt: skip
# The architectures whose names are others in GGUF, and those whose rotary pairs stand side by side there.
ARCHITECTURES, SIDE_BY_SIDE = {"mistral": "llama"}, ("llama", "mistral")
NORMAL, UNKNOWN, CONTROL, BYTE = 1, 2, 3, 6
Q8 = gguf.GGMLQuantizationType.Q8_0


@dataclass(frozen=True)
class Vocabulary:
    """What a GGUF file says of a tokenizer: ``kind`` is gpt2, which has merges, or llama, which has scores."""

    kind: str
    tokens: Sequence[str]
    types: Sequence[int]
    bos: int
    eos: int
    template: str
    merges: Sequence[str] = ()

    @classmethod
    def of(cls, tokenizer) -> Vocabulary:
        """The embedded model's tokens by their ids; llama.cpp cuts a text into others of them."""

        def kind(token: str) -> int:
            if token.startswith("<|"):
                return CONTROL
            return UNKNOWN if token == tokenizer.unk_token else BYTE if token.startswith("<0x") else NORMAL

        tokens = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
        ends = tokenizer.bos_token_id, tokenizer.eos_token_id
        return cls("llama", tokens, [kind(token) for token in tokens], *ends, tokenizer.chat_template)


def write_gguf(path: Path, model, vocabulary: Vocabulary, quantized: Sequence[str] = ()) -> dict[str, np.ndarray]:
    """Write a Llama, Mistral, Qwen 2 or 3, Phi 3 or Gemma of transformers in float32.

    Args:
        quantized: names of the matrices that are stored as Q8_0.

    Returns:
        What those matrices are worth, by their names.
    """
    config, worth = model.config, {}
    writer = gguf.GGUFWriter(str(path), ARCHITECTURES.get(config.model_type, config.model_type))
    _add_config(writer, model)
    _add_vocabulary(writer, vocabulary)
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        array = _converted(name, tensor.float().numpy(), config)
        if name in quantized:
            packed = gguf.quants.quantize(array, Q8)
            worth[name] = gguf.quants.dequantize(packed, Q8)
            writer.add_tensor(_short(name), packed, raw_dtype=Q8)
        else:
            writer.add_tensor(_short(name), array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return worth


def _add_config(writer: gguf.GGUFWriter, model) -> None:
    config, rope, rotary = model.config, model.config.rope_parameters, model.model.rotary_emb
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(width)
    writer.add_value_length(width)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(rope["rope_theta"])
    writer.add_rope_dimension_count(2 * len(rotary.inv_freq))
    if rope["rope_type"] == "llama3":
        plain = rope["rope_theta"] ** -(np.arange(0, width, 2) / width)
        writer.add_tensor("rope_freqs.weight", (plain / rotary.inv_freq.numpy()).astype(np.float32))
    elif rope["rope_type"] in ("linear", "yarn"):
        writer.add_rope_scaling_type(gguf.RopeScalingType(rope["rope_type"]))
        writer.add_rope_scaling_factor(rope["factor"])
        writer.add_rope_scaling_orig_ctx_len(rope.get("original_max_position_embeddings", 0))


def _add_vocabulary(writer: gguf.GGUFWriter, vocabulary: Vocabulary) -> None:
    writer.add_vocab_size(len(vocabulary.tokens))
    writer.add_tokenizer_model(vocabulary.kind)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.types)
    if vocabulary.merges:
        writer.add_token_merges(vocabulary.merges)
    else:
        writer.add_token_scores([0.0] * len(vocabulary.tokens))
    writer.add_bos_token_id(vocabulary.bos)
    writer.add_eos_token_id(vocabulary.eos)
    writer.add_chat_template(vocabulary.template)


def _short(name: str) -> str:
    for long, ours in NAMES.items():
        name = name.replace(long, ours)
    return name


def _converted(name: str, array: np.ndarray, config) -> np.ndarray:
    """Rows of queries and keys with each rotary pair side by side, and norms with their one, where it wants them so."""
    if config.model_type == "gemma" and array.ndim == 1:
        return array + 1
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(name.split(".")[-2])
    if heads is None or config.model_type not in SIDE_BY_SIDE:
        return array
    return array.reshape(heads, 2, -1, array.shape[1]).swapaxes(1, 2).reshape(array.shape)
