"""Where vLLM is: in an environment of its own, as it pins versions of what this package uses."""

from __future__ import annotations

import os

import pytest

VARIABLE = "LCC_VLLM_PYTHON"
VLLM_PYTHON = os.environ.get(VARIABLE, "")
needs_vllm = pytest.mark.skipif(not VLLM_PYTHON, reason=f"{VARIABLE} names no python of an environment with vLLM")
