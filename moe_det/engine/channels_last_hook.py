"""A hook that lets a detector's backbone compute with the channels last in memory."""

from __future__ import annotations

import torch
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from torch import Tensor, nn

from ..errors import MoEConfigError


class ChannelsLastHook(Hook):
    """Lays the images out with the channels last (NHWC in memory) before they enter the backbone.

    Shapes and, but for rounding, values stay the same: every convolution, norm and pooling behind computes in that
    layout. Pooling and norms on a CPU are faster so, and convolutions in half precision on a GPU. Weights and
    checkpoints are not touched. Applies to training, validation and test of any mmdet model with a ``backbone``.
    """

    def before_run(self, runner) -> None:
        """Attaches to the backbone, once.

        Raises:
            MoEConfigError: the model has none.
        """
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        backbone = getattr(model, 'backbone', None)
        if not isinstance(backbone, nn.Module):
            raise MoEConfigError(f'ChannelsLastHook: {type(model).__name__} has no backbone; take the hook out')
        if _channels_last not in backbone._forward_pre_hooks.values():
            backbone.register_forward_pre_hook(_channels_last)


def _channels_last(_: nn.Module, inputs: tuple) -> tuple:
    return tuple(
        x.contiguous(memory_format=torch.channels_last) if isinstance(x, Tensor) and x.dim() == 4 else x for x in inputs
    )
