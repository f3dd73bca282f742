"""A small net for every test of audits."""

from __future__ import annotations

import pytest
import torch

from tests.support.nets import SmallNet


@pytest.fixture
def net() -> SmallNet:
    torch.manual_seed(0)
    return SmallNet().eval()
