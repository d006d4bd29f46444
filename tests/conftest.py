"""Shared fixtures: a tiny random model, the embedded model, and texts."""

from __future__ import annotations

import copy
import os
import random

import pytest
import torch
from hypothesis import settings
from transformers import AutoModelForCausalLM, AutoTokenizer

from lcc.data.samples import DistillationData
from lcc.embedded_model import EMBEDDED
from lcc.embedded_model.tokenizer import build_tokenizer
from lcc.evaluation import certificate, questions
from lcc.pipeline import distillation
from lcc.synthetic.people import document
from tests.support.tiny_models import FAST, tiny_model

if "PYTEST_XDIST_WORKER" in os.environ:
    # Several test processes that each take every core wait for one another.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)

# Examples that the fuzzers draw with --hypothesis-profile=long.
settings.register_profile("long", max_examples=5_000)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the kernels' tests, the longest: the processes then end together."""
    items.sort(key=lambda item: "lcc_kernels" not in item.nodeid)


@pytest.fixture(scope="session")
def tokenizer():
    return build_tokenizer()


@pytest.fixture(autouse=True)
def _short_certificates(monkeypatch):
    """Certificates of a few queries, and of tiny random models, which are sure of no answer."""
    monkeypatch.setattr(certificate, "GENERAL_QUERIES", 4)
    monkeypatch.setattr(questions, "SETTLED", 0.0)


@pytest.fixture
def llama():
    return tiny_model("llama")


@pytest.fixture(scope="session")
def _embedded():
    return AutoModelForCausalLM.from_pretrained(EMBEDDED), AutoTokenizer.from_pretrained(EMBEDDED)


@pytest.fixture
def embedded(_embedded):
    """A copy of the embedded model that a test may change, and its tokenizer."""
    model, tokenizer = _embedded
    return copy.deepcopy(model), tokenizer


@pytest.fixture(scope="session")
def text() -> str:
    return document(random.Random(7), people=2, attributes=4).text


@pytest.fixture
def fast() -> dict:
    """Settings for a compilation of a second."""
    return dict(FAST)


@pytest.fixture
def data_made(monkeypatch) -> list[DistillationData]:
    """The data of every compilation that made its distillation data, rather than finding it."""
    real, made = distillation.synthesize, []

    def synthesize(*arguments):
        made.append(real(*arguments))
        return made[-1]

    monkeypatch.setattr(distillation, "synthesize", synthesize)
    return made
