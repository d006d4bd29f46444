"""``MemoryBank``: a folder of memories that answers from the right one, or from none where none helps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..text.queries import load_queries
from ..utils.outputs import Output
from ..utils.progress import Report
from ..utils.values import check_count
from .opening import BM25, BankOptions, OpenBank, Opener
from .router_file import save_trained
from .router_training import Trained, train_on
from .session import BankAnswer
from .storage import BankStorage


class MemoryBank(BankStorage):
    """A folder of memories of one model, tokenizer and prefix, that can be asked as a whole."""

    def open(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        report: Report = lambda *_: None,
        **options: Any,
    ) -> OpenBank:
        """The bank before a model, to be asked many times.

        Args:
            report: told of the progress of what must be made first.
            **options: the fields of ``BankOptions``.

        Raises:
            InputError: an option that is none, a router or a gate that was not trained, or a bank without a memory.
            MismatchError: the model or the tokenizer is another one than the bank's.
            MemoryFileError: the trained router is damaged.
        """
        return Opener(self, model, tokenizer, report).open(BankOptions(**options))

    def ask(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        questions: Sequence[str],
        max_new_tokens: int = 64,
        **options: Any,
    ) -> list[BankAnswer]:
        """Answer each question from the right memory, from a text, or from the plain model; see ``open``.

        Raises:
            InputError, MismatchError, MemoryFileError: as ``open``; or a question goes beyond the model's window.
        """
        return list(self.open(model, tokenizer, **options).ask(questions, max_new_tokens))

    def train_router(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        retriever: str = BM25,
        candidates: int = 5,
        unrelated: Sequence[str] | None = None,
        questions: int = 1000,
        seed: int = 0,
        report: Report = lambda *_: None,
    ) -> Trained:
        """Train the router and fit the gates on the questions that the memories asked themselves, and keep them.

        Args:
            unrelated: questions that no memory is about; by default the package's context-agnostic queries.
            questions: self-asked ones that are read, at most.

        Raises:
            InputError: the memories carry too few self-asked questions, or the bank has no memory.
            MismatchError: the model or the tokenizer is another one than the bank's.
            MemoryFileError: the router's file cannot be written.
        """
        check_count("questions", questions)
        options = BankOptions(retriever, candidates=candidates)
        Output.of(self.folder.router).check()
        opener = Opener(self, model, tokenizer, report)
        others = load_queries(unrelated, tokenizer)
        asked = {
            key: [passage.body for passage in passages if passage.kind == "question"]
            for key, passages in self.index.use(lambda index: index.all_passages()).items()
        }
        trained = train_on(
            opener.session(retriever), asked, others, options.candidates, opener.near, questions, seed, report
        )
        save_trained(
            self.folder.router,
            trained,
            retriever=retriever,
            candidates=candidates,
            seed=seed,
            model=opener.model_digest,
        )
        return trained
