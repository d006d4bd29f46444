"""In which precision the frozen model runs."""

from __future__ import annotations

import pytest
import torch

import lcc
from lcc.pipeline.distillation import teacher_model
from lcc.pipeline.settings import make_settings
from lcc.training import execution
from lcc.training.execution import autocast, bfloat16_pays, in_bfloat16
from lcc.training.settings import ExecutionSettings
from tests.support.tiny_models import tiny_model


@pytest.fixture
def fast_bfloat16(monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)


def test_a_cpu_runs_wide_models_in_bfloat16_if_it_has_it(llama, fast_bfloat16, monkeypatch):
    assert not bfloat16_pays(llama)
    monkeypatch.setattr(execution, "CPU_WIDTH", llama.config.hidden_size)
    assert bfloat16_pays(llama)
    assert not bfloat16_pays(tiny_model("llama", torch.float64))
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    assert not bfloat16_pays(llama)


def test_what_is_asked_for_is_done(llama):
    for precision, wanted in (("float32", False), ("bfloat16", True), ("auto", False)):
        settings = ExecutionSettings(precision=precision)
        assert in_bfloat16(llama, settings) == wanted
        with autocast(llama, settings):
            assert torch.is_autocast_enabled("cpu") == wanted
    with pytest.raises(lcc.InputError, match="the model is float16"):
        in_bfloat16(tiny_model("llama", torch.float16), ExecutionSettings(precision="bfloat16"))


def test_the_teacher_writes_in_the_precision_of_the_run(llama):
    assert teacher_model(llama, make_settings()) is llama
    assert teacher_model(llama, make_settings(precision="bfloat16")).dtype == torch.bfloat16
