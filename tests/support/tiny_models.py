"""Tiny random models of every family, and what compiles with them in a second."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerBase

from benchmarks.compile.float64 import exact
from lcc.data.samples import DistillationData, Sample
from lcc.data.self_study import self_study
from lcc.data.settings import DataSettings
from lcc.data.synthesis import synthesize
from lcc.data.teacher import Teacher
from lcc.data.teacher_states import TeacherStates
from lcc.embedded_model.tokenizer import build_tokenizer
from lcc.memory.memory import Memory
from lcc.modeling.prefill import prefill
from lcc.pipeline.compile import make_memory
from lcc.pipeline.options import CompileOptions, Run
from lcc.pipeline.settings import CompileSettings
from lcc.text.context import Context
from lcc.utils.progress import Reporter

TINY = {
    "vocab_size": len(build_tokenizer()),
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 256,
}
FAMILIES = {
    "llama": {},
    "llama3": {"rope_parameters": LLAMA3_ROPE},
    "qwen2": {},
    "qwen3": {"head_dim": 16},
    "mistral": {"sliding_window": None},
    "phi3": {"sliding_window": None, "partial_rotary_factor": 0.5},
}


# Rotary tables of other kinds, in the families that are known for them.
ROPES = {
    "linear": {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}},
    "yarn": {
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 10000.0,
            "factor": 4.0,
            "original_max_position_embeddings": 256,
        }
    },
    "longrope": {
        "sliding_window": None,
        "original_max_position_embeddings": 256,
        "rope_parameters": {
            "rope_type": "longrope",
            "rope_theta": 10000.0,
            "original_max_position_embeddings": 256,
            "short_factor": [1.0, 1.1, 1.2, 1.3, 1.4, 1.5],
            "long_factor": [1.0, 1.5, 2.0, 3.0, 4.0, 6.0],
        },
    },
}
# Families whose keys are exported, and that differ from the others in nothing else that is tested.
EXPORTED = {"gemma": {"head_dim": 16}}
MODEL_TYPES = {"llama3": "llama", "linear": "llama", "yarn": "llama", "longrope": "phi3"}


def tiny_model(family: str, dtype: torch.dtype = torch.float32, **overrides: object) -> torch.nn.Module:
    """A random model of ``family`` behind the embedded model's tokenizer; ``overrides`` of its config."""
    torch.manual_seed(0)
    settings = TINY | (FAMILIES | ROPES | EXPORTED)[family] | overrides
    config = AutoConfig.for_model(MODEL_TYPES.get(family, family), **settings)
    model = AutoModelForCausalLM.from_config(config).to(dtype).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            # Wide enough for attention to be far from uniform.
            parameter.copy_(torch.randn_like(parameter) * 0.15 + (1.0 if parameter.ndim == 1 else 0.0))
    return exact(model) if dtype == torch.float64 else model


FAST = {
    "ratio": 8,
    "steps": 4,
    "batch": 6,
    "general_queries": 10,
    "self_study_questions": 6,
    # A random model ends no question in a few tokens, unless chance does: it is asked often, about many pieces.
    "self_study_temperature": 5.0,
    "self_study_piece": 10,
    "self_study_hard": 0.0,
    "self_study_follow_ups": 0.0,
    "max_response_tokens": 8,
    "evaluate_every": 2,
    "held_out": 0.3,
    "progress": False,
}


@torch.no_grad()
def make_data(
    model: torch.nn.Module, context: Context, settings: CompileSettings, queries: list[str]
) -> DistillationData:
    """The distillation data of a text, all of it held in memory."""
    text_kv = prefill(model, context.context_ids, context.read_prefix(model))
    states = TeacherStates(float("inf"))
    data = settings.effective_data
    return synthesize(model, context, text_kv, data, queries, settings.seed, lambda *_: None, states)


@torch.no_grad()
def asked_questions(model: torch.nn.Module, context: Context, settings: DataSettings, seed: int = 0) -> list[Sample]:
    """What the model asks itself about a text, answered."""
    text_kv = prefill(model, context.context_ids, context.read_prefix(model))
    teacher = Teacher(model, context, text_kv, settings.max_response_tokens, TeacherStates(float("inf")))
    return self_study(teacher, settings, seed, lambda *_: None)[0]


def compile_leaving_checkpoint(
    model: torch.nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    text: str,
    folder: Path,
    checkpoint_every: int = 50,
    distributed: bool = False,
    **options: object,
) -> Memory:
    """``lcc.compile`` whose finished checkpoint stays in ``folder``."""
    options.pop("progress", None)
    run = Run(folder, checkpoint_every, distributed=distributed)
    return make_memory(model, tokenizer, text, CompileOptions.of(**options), run, Reporter(False))
