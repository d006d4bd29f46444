"""A bank opened for a model: what finds, routes and gates, put together from options and from what was trained."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..errors import InputError
from ..inference.pool import AttachedPool
from ..modeling.adapter import Adapter
from ..modeling.kv import KV
from ..modeling.model_copy import share_weights
from ..modeling.wrappers import plain_model
from ..text.chat_format import ChatFormat
from ..utils.progress import Report
from ..utils.values import check, check_count, require
from .choosing import Chooser
from .gating import ALWAYS, NEVER, Gate
from .neighbors import Neighborhood, neighborhood
from .retrieval import FusedRetriever, Retriever, VectorRetriever, WordRetriever
from .router_file import load_trained
from .router_training import Trained, best_of
from .routing import FirstTokenRouter, NeighborRouter, Router, ScoreRouter
from .session import Asking, BankAnswer, BankSession
from .storage import BankStorage
from .vectors import PassageVectors, asking_encoder, hidden_encoder, sentence_encoder

BM25, HIDDEN, ASKING = "bm25", "hidden", "asking"
AUTO, NONE, CONFORMAL, SCORE = "auto", "none", "conformal", "score"
ENCODERS = {HIDDEN: hidden_encoder, ASKING: asking_encoder}
ROUTERS = (AUTO, ScoreRouter.name, FirstTokenRouter.name, NeighborRouter.name)


@dataclass(frozen=True)
class BankOptions:
    """How a bank is asked.

    Attributes:
        retriever: ``bm25``; ``hidden``: mean-pooled hidden states of the model itself; ``asking``: its hidden state
            where it would answer; or a sentence-transformers folder. Several, with a ``+`` between them, are fused by
            their ranks.
        router: ``score``: the retriever's first; ``first_token``: the trained one (CDLM); ``neighbors``: kNN over the
            self-asked questions (Cartridges++). ``auto``: the trained one if there is one, else ``score``.
        gate: ``auto``: of the trained gates the one that was best on held-out questions, or ``none`` if none was
            trained; ``entropy``, ``divergence``, ``likeness`` or ``score``: a trained one; ``conformal``: likeness,
            with the threshold that refuses 5 % of the self-asked questions; ``none``: a memory always answers; a
            ``Gate`` or SIGNAL=THRESHOLD, such as ``entropy=1.5``.
        candidates: memories that are looked at for each question.
        together: memories that may answer side by side.
        fallback: what answers where no memory does: ``text``: the raw text of the best candidate, if the bank keeps it
            and the best of the trained gates does not take the question for an unrelated one; else the plain model.
            ``model``: the plain model.

    Raises:
        InputError: an option is none of these.
    """

    retriever: str = BM25
    router: str = AUTO
    gate: str | Gate = AUTO
    candidates: int = 5
    together: int = 1
    fallback: Literal["text", "model"] = "text"

    def __post_init__(self) -> None:
        check("retriever", self.retriever, str)
        require(all(self.retriever.split("+")), "retriever", self.retriever, f"{BM25}, {HIDDEN} or a folder")
        require(self.router in ROUTERS, "router", self.router, f"one of {', '.join(ROUTERS)}")
        check_count("candidates", self.candidates)
        check_count("together", self.together)
        require(self.fallback in ("text", "model"), "fallback", self.fallback, "text or model")
        if not isinstance(self.gate, Gate):
            check("gate", self.gate, str)
            parse_gate(self.gate)


def parse_gate(given: str) -> Gate | str:
    """``SIGNAL=THRESHOLD`` as a gate, ``none`` as one that is always open; ``auto`` and a signal alone as they are.

    Raises:
        InputError: it is none of these.
    """
    signal, equals, number = given.partition("=")
    if given == NONE:
        return ALWAYS
    if not equals:
        if given not in (AUTO, CONFORMAL):
            Gate(signal, 0.0)  # type: ignore[arg-type]
        return given
    try:
        return Gate(signal, float(number))  # type: ignore[arg-type]
    except ValueError as error:
        raise InputError(f"gate is {given!r}; write SIGNAL=THRESHOLD with a number, such as entropy=1.5") from error


@dataclass
class OpenBank:
    """A bank before a model.

    Attributes:
        session: reads.
        asking: how.
        trained: what ``train-router`` left; None if it did not run, or is of another model.
    """

    session: BankSession
    asking: Asking
    trained: Trained | None = None
    notes: list[str] = field(default_factory=list)

    def ask(self, questions: Sequence[str], max_new_tokens: int = 64) -> Iterator[BankAnswer]:
        """Answer each question; see ``BankSession.ask``."""
        return self.session.ask(questions, self.asking, max_new_tokens)


class Opener:
    """Puts the parts together.

    Attributes:
        model_digest: of the fingerprint of the bank's model and tokenizer.

    Raises:
        InputError: the bank has no memory that can be used.
        MismatchError: the model or the tokenizer is another one than the bank's.
    """

    def __init__(
        self,
        storage: BankStorage,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        report: Report = lambda *_: None,
    ):
        model = plain_model(model)
        first = storage.index.use(lambda index: index.other(""))
        if first is None:
            raise InputError(f"the bank {storage.path} has no memory that can be used: lcc bank add DOCUMENTS")
        storage.require_model(model, tokenizer)
        self.storage, self.model, self.report = storage, share_weights(model), report
        self.model_digest = first.model
        self.chat = ChatFormat.of(tokenizer, date=storage.memory(first.key).date)
        self._vectors: dict[str, PassageVectors] = {}
        self._pool = AttachedPool[KV | Adapter]()

    def session(self, retriever: str) -> BankSession:
        """The bank behind a retriever."""
        parts = [self._retriever(name) for name in dict.fromkeys(retriever.split("+"))]
        found: Retriever = parts[0] if len(parts) == 1 else FusedRetriever(parts)
        return BankSession(self.model, self.chat, self.storage, found, self._pool)

    def near(self, questions: Sequence[str], apart: bool = False) -> list[Neighborhood]:
        """The self-asked questions around each question, by the hidden states behind which the model would answer.

        Args:
            apart: none that reads the same is a neighbour.
        """
        vectors = self.vectors(ASKING)
        around, encoded = vectors(), vectors.encode(questions)
        return [
            neighborhood(around, one, question if apart else None)
            for question, one in zip(questions, encoded, strict=True)
        ]

    def vectors(self, name: str) -> PassageVectors:
        """The bank's passages by an encoder; they are made when they are first wanted."""
        if name not in self._vectors:
            encode = ENCODERS[name](self.model, self.chat) if name in ENCODERS else sentence_encoder(name)
            self._vectors[name] = PassageVectors(self.storage, name, encode, self.report)
        return self._vectors[name]

    def open(self, options: BankOptions) -> OpenBank:
        """The bank as ``options`` want it.

        Raises:
            InputError: a router or a gate is wanted that was not trained.
        """
        trained, notes = self._trained(options)
        router = self._router(options.router, trained)
        gate = self._gate(options.gate, trained, router)
        text_gate = self._gate(AUTO, trained, router) if options.fallback == "text" else None
        candidates = 0 if gate == NEVER else options.candidates
        chooser = Chooser(router, gate, options.together)
        asking = Asking(chooser, self.near, candidates, text_gate)
        return OpenBank(self.session(options.retriever), asking, trained, notes)

    def _retriever(self, name: str) -> Retriever:
        if name == BM25:
            return WordRetriever(self.storage.search)
        vectors = self.vectors(name)
        return VectorRetriever(name, vectors.encode, vectors)

    def _trained(self, options: BankOptions) -> tuple[Trained | None, list[str]]:
        path = self.storage.folder.router
        if not path.exists():
            asks_for_one = options.router == options.gate == AUTO
            return None, ["no router was trained, so a memory always answers: lcc bank train-router"] * asks_for_one
        trained, made_with = load_trained(path)
        if made_with["model"] != self.model_digest:
            return None, ["the router was trained for another model: lcc bank train-router"]
        others = {"retriever": options.retriever, "candidates": options.candidates}
        differs = [f"{name} {made_with[name]}" for name, value in others.items() if made_with[name] != value]
        return trained, [f"the router was trained with {', '.join(differs)}"] if differs else []

    def _router(self, name: str, trained: Trained | None) -> Router:
        if name == NeighborRouter.name:
            return NeighborRouter()
        if trained is not None and name in (AUTO, FirstTokenRouter.name):
            return trained.router
        if name == FirstTokenRouter.name:
            raise InputError("the router first_token was not trained: run lcc bank train-router, or take score")
        return ScoreRouter()

    def _gate(self, given: str | Gate, trained: Trained | None, router: Router) -> Gate:
        gate = parse_gate(given) if isinstance(given, str) else given
        if isinstance(gate, Gate):
            return gate
        if trained is None:
            if gate != AUTO:
                raise InputError(
                    f"the gate {gate} was not trained: run lcc bank train-router, or give {gate}=THRESHOLD"
                )
            return ALWAYS
        if gate == CONFORMAL:
            return trained.conformal
        # The threshold on a score is one on the trained router's: others score in units of their own.
        fits = {name: fit for name, fit in trained.gates.items() if name != SCORE or router is trained.router}
        if gate == SCORE not in fits:
            raise InputError(f"the gate score is of the router first_token: take that, or give {gate}=THRESHOLD")
        return best_of(fits).gate if gate == AUTO else fits[gate].gate
