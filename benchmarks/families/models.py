"""Tiny random models of many families, and the verdict on each: the list behind the tests and docs/models.md."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, PreTrainedModel

SIZES = {
    "vocab_size": 803,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
# Other names of the sizes.
GPT = {"n_embd": 64, "n_layer": 4, "n_head": 4, "n_positions": 1024, "n_inner": 96, "rotary_dim": 8}
MPT = {"d_model": 64, "n_layers": 4, "n_heads": 4}
BART = {"d_model": 64, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64}
HEADS = {"head_dim": 16}
NO_WINDOW = {"sliding_window": None}
EXPERTS = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
GROUPS = EXPERTS | {"n_routed_experts": 4, "n_shared_experts": 1, "n_group": 1, "topk_group": 1}
LATENT = {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 16}
MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 16, "mamba_d_ssm": 128, "mamba_d_state": 16, "mamba_n_groups": 1}
LINEAR = {"linear_key_head_dim": 8, "linear_value_head_dim": 8, "linear_num_key_heads": 2, "linear_num_value_heads": 4}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 256,
}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "original_max_position_embeddings": 256,
    "short_factor": [1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7],
    "long_factor": [1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 9.0],
}
# Reasons, in words of the message.
POSITIONS = "no rotary position embedding"
LAYERS = "layers under another name"
SEQ2SEQ = "an encoder and a decoder"
CACHE = "does not cache K and V in every layer"
MASK = "hides tokens by more than causality"
HEAD = "changes its logits behind the head"
TURN = "turns keys of some layer in another way"
MOVE = "when what it has read stands at another position"
ATTENTION = "attends in another way"


@dataclass(frozen=True)
class Family:
    """A kind of model.

    Attributes:
        model_type: transformers' name of it.
        refused: words of the reason; None if it is accepted.
        options: of its config, beside ``SIZES``.
    """

    model_type: str
    refused: str | None = None
    options: dict[str, Any] = field(default_factory=dict)

    def model(self, dtype: torch.dtype = torch.float32, **options: object) -> PreTrainedModel:
        """A random one, whose attention is far from uniform; ``options`` of its config."""
        torch.manual_seed(0)
        config = AutoConfig.for_model(self.model_type, **SIZES | self.options | options)
        # Of the experts' implementations, this one runs in float64.
        config._experts_implementation = "eager"
        kind = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
        model = kind.from_config(config, trust_remote_code=False).to(dtype).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(torch.randn_like(parameter) * 0.15 + (1.0 if parameter.ndim == 1 else 0.0))
        return model


class AllFloat64(TorchFunctionMode):
    """Inside the block, what transformers computes in float32 whatever its input is computed in float64.

    Backwards that compute a forward again do so outside of it.
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):
        func = torch.Tensor.double if func is torch.Tensor.float else func
        kwargs = {name: _wide(value) for name, value in (kwargs or {}).items()}
        return func(*map(_wide, args), **kwargs)


def _wide(value: object) -> object:
    return torch.float64 if value is torch.float32 else value


FAMILIES: dict[str, Family] = {
    "afmoe": Family("afmoe", MASK, EXPERTS | HEADS),
    "apertus": Family("apertus"),
    "arcee": Family("arcee"),
    "bamba": Family("bamba", CACHE, MAMBA | {"attn_layer_indices": [1, 3]}),
    "bart": Family("bart", SEQ2SEQ, BART),
    "bert as a decoder": Family("bert", POSITIONS, {"is_decoder": True}),
    "biogpt": Family("biogpt", POSITIONS),
    "bloom": Family("bloom", POSITIONS, {"n_layer": 4, "n_head": 4}),
    "codegen": Family("codegen", POSITIONS, GPT),
    "cohere": Family("cohere", HEAD),
    "cohere without a logit scale": Family("cohere", TURN, {"logit_scale": 1.0}),
    "cohere2": Family("cohere2", MASK),
    "ctrl": Family("ctrl", POSITIONS, GPT),
    "cwm": Family("cwm", MASK, HEADS),
    "deepseek_v2": Family("deepseek_v2", CACHE, GROUPS | LATENT | {"first_k_dense_replace": 1}),
    "deepseek_v3": Family("deepseek_v3", CACHE, GROUPS | LATENT),
    "diffllama": Family("diffllama", ATTENTION),
    "doge": Family("doge", ATTENTION),
    "dots1": Family("dots1", None, GROUPS | HEADS),
    "ernie4_5": Family("ernie4_5", TURN),
    "ernie4_5_moe": Family("ernie4_5_moe", TURN, EXPERTS | {"moe_num_experts": 4, "moe_k": 2}),
    "exaone4": Family("exaone4", MASK),
    "exaone4 without windows": Family("exaone4", None, NO_WINDOW | {"layer_types": ["full_attention"] * 4}),
    "falcon": Family("falcon", LAYERS),
    "falcon with ALiBi": Family("falcon", LAYERS, {"alibi": True}),
    "falcon_h1": Family("falcon_h1", MOVE, MAMBA),
    "gemma": Family("gemma", None, HEADS),
    "gemma2": Family("gemma2", MASK, HEADS),
    "gemma2 without windows": Family("gemma2", HEAD, HEADS | {"layer_types": ["full_attention"] * 4}),
    "gemma2 without windows and final cap": Family(
        "gemma2", ATTENTION, HEADS | {"layer_types": ["full_attention"] * 4, "final_logit_softcapping": None}
    ),
    "gemma3_text": Family("gemma3_text", MASK, HEADS),
    "glm": Family("glm", TURN, HEADS),
    "glm4": Family("glm4", TURN, HEADS),
    "glm4_moe": Family("glm4_moe", None, GROUPS | HEADS),
    "gpt2": Family("gpt2", POSITIONS, GPT),
    "gpt_bigcode": Family("gpt_bigcode", POSITIONS, GPT),
    "gpt_neo": Family("gpt_neo", POSITIONS, {"num_layers": 4, "attention_types": [[["global"], 4]], "num_heads": 4}),
    "gpt_neox": Family("gpt_neox", None, {"num_key_value_heads": None}),
    "gpt_neox_japanese": Family("gpt_neox_japanese", ATTENTION, {"num_key_value_heads": None}),
    "gpt_oss": Family("gpt_oss", MASK, EXPERTS | HEADS),
    "gpt_oss without windows": Family(
        "gpt_oss", TURN, EXPERTS | HEADS | {"layer_types": ["full_attention"] * 4, "rope_parameters": LLAMA3}
    ),
    "gptj": Family("gptj", POSITIONS, GPT),
    "granite": Family("granite"),
    "granite with a logit scale": Family("granite", HEAD, {"logits_scaling": 8.0}),
    "granitemoe": Family("granitemoe", None, EXPERTS),
    "helium": Family("helium", TURN, HEADS),
    "hunyuan_v1_dense": Family("hunyuan_v1_dense", TURN, HEADS),
    "hunyuan_v1_moe": Family("hunyuan_v1_moe", TURN, EXPERTS | HEADS | {"moe_topk": 2}),
    "jais2": Family("jais2"),
    "jamba": Family(
        "jamba", POSITIONS, EXPERTS | {"attn_layer_period": 2, "attn_layer_offset": 1, "use_mamba_kernels": False}
    ),
    "jetmoe": Family("jetmoe", ATTENTION, EXPERTS | {"kv_channels": 16}),
    "laguna": Family("laguna", TURN, EXPERTS | HEADS),
    "lfm2": Family("lfm2", CACHE, {"layer_types": ["conv", "full_attention"] * 2}),
    "llama": Family("llama"),
    "llama with llama3 rope": Family("llama", None, {"rope_parameters": LLAMA3}),
    "llama4_text": Family("llama4_text", POSITIONS, EXPERTS | HEADS | {"intermediate_size_mlp": 64}),
    "mamba": Family("mamba", POSITIONS, {"state_size": 8}),
    "mamba2": Family("mamba2", POSITIONS, {"num_heads": 8, "head_dim": 16, "state_size": 8, "n_groups": 1}),
    "minimax": Family("minimax", CACHE, EXPERTS | HEADS | {"layer_types": ["linear_attention", "full_attention"] * 2}),
    "minimax_m2": Family("minimax_m2", None, EXPERTS | HEADS),
    "ministral": Family("ministral", MASK, HEADS),
    "ministral3": Family("ministral3", ATTENTION, HEADS),
    "mistral without a window": Family("mistral", None, NO_WINDOW),
    "mistral with a window of 4,096": Family("mistral", MASK, {"sliding_window": 4096}),
    "mixtral": Family("mixtral", None, EXPERTS | NO_WINDOW),
    "modernbert-decoder": Family("modernbert-decoder", MASK, {"num_key_value_heads": None}),
    "moshi": Family("moshi", POSITIONS, HEADS | {"ffn_dim": 64, "num_codebooks": 2}),
    "mpt": Family("mpt", POSITIONS, MPT),
    "nanochat": Family("nanochat", HEAD),
    "nemotron": Family("nemotron", ATTENTION),
    "olmo": Family("olmo"),
    "olmo2": Family("olmo2"),
    "olmo3": Family("olmo3", MASK),
    "olmoe": Family("olmoe", None, EXPERTS),
    "openai-gpt": Family("openai-gpt", POSITIONS, GPT),
    "opt": Family("opt", POSITIONS, {"ffn_dim": 64, "word_embed_proj_dim": 64}),
    "persimmon": Family("persimmon", None, {"num_key_value_heads": None}),
    "phi": Family("phi"),
    "phi3": Family("phi3", None, NO_WINDOW | {"partial_rotary_factor": 0.5}),
    "phi3 with longrope": Family(
        "phi3", None, NO_WINDOW | {"original_max_position_embeddings": 256, "rope_parameters": LONGROPE}
    ),
    "phimoe": Family("phimoe", None, EXPERTS | NO_WINDOW),
    "qwen2": Family("qwen2"),
    "qwen2 with windows": Family(
        "qwen2", MASK, {"use_sliding_window": True, "sliding_window": 64, "max_window_layers": 2}
    ),
    "qwen2_moe": Family("qwen2_moe", None, EXPERTS | {"shared_expert_intermediate_size": 32}),
    "qwen3": Family("qwen3", None, HEADS),
    "qwen3_moe": Family("qwen3_moe", None, EXPERTS | HEADS),
    "qwen3_next": Family("qwen3_next", CACHE, EXPERTS | HEADS | LINEAR | {"shared_expert_intermediate_size": 32}),
    "recurrent_gemma": Family("recurrent_gemma", POSITIONS, {"lru_width": 64}),
    "roformer as a decoder": Family("roformer", POSITIONS, {"is_decoder": True}),
    "rwkv": Family("rwkv", POSITIONS, {"attention_hidden_size": 64}),
    "seed_oss": Family("seed_oss", None, HEADS),
    "smollm3": Family("smollm3", TURN),
    "stablelm": Family("stablelm", ATTENTION),
    "starcoder2": Family("starcoder2", None, NO_WINDOW),
    "t5": Family("t5", SEQ2SEQ, {"d_model": 64, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 4}),
    "vaultgemma": Family("vaultgemma", MASK, HEADS),
    "xglm": Family("xglm", POSITIONS, {"d_model": 64, "num_layers": 4, "attention_heads": 4, "ffn_dim": 64}),
    "youtu": Family("youtu", CACHE, LATENT),
    "zamba2": Family("zamba2", POSITIONS, {"layers_block_type": ["mamba", "hybrid"] * 2, "hybrid_layer_ids": [1, 3]}),
}
