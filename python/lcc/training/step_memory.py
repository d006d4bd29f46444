"""What a step's activations take, known before it runs, and how the step is made to fit.

What the backward keeps of a row is measured, not modelled: a few rows run through the model while autograd's saved
tensors are counted. The rest is linear in rows, because neither scores nor logits ever exist whole.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

import lcc_kernels as lk

from ..modeling.kv import kv_shape
from ..modeling.packed_decoder import PackedDecoder, PackedRow
from .settings import ExecutionSettings

PROBE = 32  # rows; twice as many give the slope
CHUNK = 2048  # tokens of text that ``encode_chunk="auto"`` reads at a time
LOGITS = {"cpu": 2**26, "cuda": 2**29}  # bound of ``lk.linear_kl`` on the logits that exist at one time
HEADROOM = 0.9  # share of the free memory to plan with: allocators lose some


@dataclass(frozen=True)
class StepMemory:
    """Bytes beyond weights and optimizer state at a step's worst moment.

    Attributes:
        kept: held from the forward to the backward.
        working: what the backward of a layer, of the head, or of a chunk of text needs at a time, whichever is most.
    """

    kept: int
    working: int

    @property
    def total(self) -> int:
        """Both."""
        return self.kept + self.working


def step_memory(
    model: PreTrainedModel,
    layout: lk.BottleneckLayout,
    settings: ExecutionSettings,
    adapts_samples: bool = False,
    beside: int = 0,
) -> StepMemory:
    """Estimate the activation memory of a packed step.

    Args:
        model: as it runs: with the LoRA in it, if there is one.
        layout: of one document, the reconstruction's segment included.
        settings: ``gradient_checkpointing`` and ``encode_chunk`` count as off where they are ``auto``.
        adapts_samples: see ``TrainableMemory``.
        beside: tokens of the distractors in a step at most. Among them the text is encoded by itself.
    """
    (document,) = layout.documents
    text, answers = document.context + document.buffer, sum(document.segments)
    config, itemsize = model.config, model.get_input_embeddings().weight.element_size()
    layers = config.num_hidden_layers
    text_row, answer_row = (_saved_per_row(model, adapted) for adapted in (True, adapts_samples))
    logits = min(LOGITS.get(model.device.type, LOGITS["cuda"]), 2 * answers * config.vocab_size * itemsize)

    _, kv_heads, head_dim = kv_shape(config)
    heads, checkpointed = config.num_attention_heads, settings.gradient_checkpointing is True
    seen = 2 * layers * kv_heads * beside * head_dim * itemsize
    # What a layer's attention saves: keys, values, output, and zeros that stand for queries.
    attended = 2 * (kv_heads + heads) * beside * head_dim * itemsize
    # Once recomputed, one layer's with its gradients is enough, beside the gradients of all layers, old and new.
    distractors = 3 * seen + 2 * attended if checkpointed else seen + layers * attended

    def phase(read: int, held: int, last: int) -> StepMemory:
        """``read`` rows of C and B, of which the last layer runs ``last``, and all answers, beside ``held`` bytes."""
        whole = text_row * read + answer_row * answers
        backward = (4 * config.intermediate_size + 2 * config.hidden_size) * (read + answers) * itemsize
        if checkpointed:
            inputs = layers * (read + answers) * config.hidden_size * itemsize
            return StepMemory(held + inputs, max(int(whole / layers) + backward, logits))
        return StepMemory(held + int(whole - text_row * (read - last) / layers), max(backward, logits))

    def in_chunks(chunk: int) -> StepMemory:
        """The encode, ``chunk`` rows of C and B at a time, or the answers behind it."""
        states = 2 * layers * text * kv_heads * head_dim * itemsize
        repeated = 2 * text * heads * head_dim * itemsize
        backward = 4 * config.intermediate_size * chunk * itemsize
        inputs = layers * chunk * config.hidden_size * itemsize
        encode = StepMemory(2 * states + inputs, int(text_row * chunk / layers) + 2 * repeated + backward)
        return max(encode, phase(0, states + distractors, 0), key=lambda memory: memory.total)

    if chunk := min(settings.chunk, text):
        return in_chunks(chunk)
    # Of C and B, the last layer runs B alone, or what an encode by itself runs.
    isolated = phase(text, 0, 0)
    if not beside:
        return isolated
    among = in_chunks(text) if checkpointed else phase(text, distractors, text)
    return max(isolated, among, key=lambda memory: memory.total)


def _saved_per_row(model: PreTrainedModel, adapted: bool) -> float:
    """Bytes that the backward keeps of one more row, in all layers."""
    packed = PackedDecoder(model)
    try:
        return (_saved(packed, 2 * PROBE, adapted) - _saved(packed, PROBE, adapted)) / PROBE
    finally:
        packed.remove()


def _saved(packed: PackedDecoder, rows: int, adapted: bool) -> int:
    """Bytes of the distinct tensors, weights apart, that autograd saves of a causal row."""
    model = packed.model
    weights = {tensor.untyped_storage().data_ptr() for tensor in model.parameters()}
    sizes: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    embeddings = torch.zeros(
        1, rows, model.config.hidden_size, dtype=model.dtype, device=model.device, requires_grad=True
    )
    positions = torch.arange(rows, device=model.device)
    row = PackedRow(lk.BottleneckLayout(0, 0, rows), adapted=None if adapted else 0)
    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        hidden = packed(embeddings, positions, [row] * model.config.num_hidden_layers)
    del hidden  # until here the storages live, and their addresses differ
    return sum(sizes.values())
