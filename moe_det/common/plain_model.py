"""A runner's model without the wrapper of several processes."""

from __future__ import annotations

from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from torch import nn


def plain_model(runner: Runner) -> nn.Module:
    """The model that the config builds."""
    return runner.model.module if is_model_wrapper(runner.model) else runner.model
