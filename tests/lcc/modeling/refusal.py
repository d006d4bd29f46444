"""A model that is refused: by its class, with the remedy, on one line."""

from __future__ import annotations

import pytest

import lcc
from lcc.modeling.architecture import check_architecture


def refuse(model, words):
    with pytest.raises(lcc.InputError, match=words) as refusal:
        check_architecture(model)
    message = str(refusal.value)
    assert message.startswith(type(model).__name__)
    assert message.endswith("docs/models.md says which")
    assert "\n" not in message
