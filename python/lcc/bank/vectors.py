"""The vectors of a bank's passages: made when they are first wanted, and kept in the index."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from ..errors import InputError
from ..modeling.prefill import prefill
from ..modeling.sentence_states import SentenceStates
from ..text.chat_format import ChatFormat
from ..utils.progress import Report
from ..utils.terminal import first_line
from .index import BankIndex
from .passages import Passage
from .retrieval import Encode, Passages
from .storage import BankStorage

# Passages that are encoded before they are kept.
BATCH = 2048
STAGE = "encoding passages"


class PassageVectors:
    """All passages of a bank as vectors; those of memories that were added are made at the next call.

    Args:
        encoder: names the vectors in the index.
        encode: texts to vectors of length 1.
        report: told of the progress.
    """

    def __init__(self, bank: BankStorage, encoder: str, encode: Encode, report: Report = lambda *_: None):
        self._bank, self._encoder, self.encode, self._report = bank, encoder, encode, report
        self._stamp: tuple[object, ...] | None = None
        self._passages = Passages(torch.empty(0, 0), (), (), torch.empty(0, dtype=torch.bool))

    def __call__(self) -> Passages:
        """The passages as the bank has them now."""
        stamp = self._bank.index.use(BankIndex.stamp)
        if stamp != self._stamp:
            self._passages, self._stamp = self._loaded(), stamp
        return self._passages

    def _loaded(self) -> Passages:
        passages = self._bank.index.use(BankIndex.all_passages)
        kept = self._bank.index.use(lambda index: index.vectors(self._encoder))
        vectors = {key: _from_bytes(kept[key], len(passages[key])) for key in passages.keys() & kept.keys()}
        vectors |= self._made({key: some for key, some in passages.items() if key not in kept})
        flat = [(key, passage) for key, some in passages.items() for passage in some]
        return Passages(
            torch.cat([vectors[key] for key in passages if passages[key]]) if flat else torch.empty(0, 0),
            tuple(key for key, _ in flat),
            tuple(passage.body for _, passage in flat),
            torch.tensor([passage.kind == "question" for _, passage in flat], dtype=torch.bool),
        )

    def _made(self, missing: dict[str, list[Passage]]) -> dict[str, torch.Tensor]:
        vectors: dict[str, torch.Tensor] = {}
        total, some = sum(map(len, missing.values())), dict[str, list[Passage]]()
        done = 0
        for number, (key, passages) in enumerate(missing.items(), 1):
            some[key] = passages
            count = sum(map(len, some.values()))
            if count < BATCH and number < len(missing):
                continue
            bodies = [passage.body for one in some.values() for passage in one]
            encoded = self.encode(bodies).half() if bodies else torch.empty(0, 0, dtype=torch.half)
            made = dict(zip(some, encoded.split([len(one) for one in some.values()]), strict=True))
            self._keep(made)
            vectors |= {each: rows.float() for each, rows in made.items()}
            done, some = done + count, {}
            self._report(STAGE, done, total)
        return vectors

    def _keep(self, vectors: dict[str, torch.Tensor]) -> None:
        kept = {key: rows.numpy().tobytes() for key, rows in vectors.items()}
        self._bank.index.use(lambda index: index.put_vectors(self._encoder, kept))


def hidden_encoder(model: PreTrainedModel, chat: ChatFormat) -> Encode:
    """Mean-pooled hidden states of the model itself, which reads each text behind the chat's prefix."""
    states = SentenceStates(model, prefill(model, chat.prefix_ids), "mean")
    return lambda texts: states.of([chat.ids(text) or chat.prefix_ids[-1:] for text in texts])


def asking_encoder(model: PreTrainedModel, chat: ChatFormat) -> Encode:
    """The hidden state of the token behind which the model would answer each text as a question."""
    states = SentenceStates(model, prefill(model, chat.prefix_ids), "last")
    return lambda texts: states.of([chat.query_ids(text, after_text=False) for text in texts])


def sentence_encoder(folder: str) -> Encode:
    """The vectors of a sentence-transformers folder.

    Raises:
        InputError: the package is missing, or the folder is none of it.
    """
    if not Path(folder).is_dir():
        raise InputError(f"there is no retriever {folder}: take bm25, hidden, asking or a sentence-transformers folder")
    try:
        from sentence_transformers import SentenceTransformer
    except ModuleNotFoundError as error:
        raise InputError(
            f"the retriever {folder} is read with sentence-transformers: pip install 'lcc-kernels[bank]'; bm25 and "
            "hidden need nothing"
        ) from error
    try:
        model: Any = SentenceTransformer(
            folder, trust_remote_code=False, local_files_only=True, model_kwargs={"use_safetensors": True}
        )
    except Exception as error:
        # What stands in a folder's files can raise nearly anything inside the library.
        raise InputError(f"cannot load the retriever {folder}: {first_line(error)}") from error

    def encode(texts: Sequence[str]) -> torch.Tensor:
        options = {"normalize_embeddings": True, "convert_to_tensor": True, "show_progress_bar": False}
        return model.encode(list(texts), **options).float().cpu()

    return encode


def _from_bytes(data: bytes, count: int) -> torch.Tensor:
    """(count, width) float32."""
    if not count:
        return torch.empty(0, 0)
    return torch.frombuffer(bytearray(data), dtype=torch.half).view(count, -1).float()
