"""Layers are built as in a config of mmdet: under its default scope, with one thread and one seed."""

from __future__ import annotations

import pytest
import torch
from mmengine.registry import DefaultScope

import moe_det  # noqa: F401  registers the classes


@pytest.fixture(autouse=True)
def as_in_a_config():
    """One thread, as the machine is shared; the scope in which mmdet looks names up."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope('mmdet'):
        yield
