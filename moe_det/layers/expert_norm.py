"""Batch normalisation inside experts."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


class ExpertBatchNorm2d(nn.BatchNorm2d, _BatchNorm):  # both: mmengine's init_cfg finds layers by their direct bases
    """BatchNorm2d that normalises a single value per channel with its running statistics.

    In training, routing may leave an expert a single row, and the top level of a small image has a single pixel. The
    variance of one value is meaningless, and PyTorch refuses it; a plain branch would see the other rows of the batch
    there. The running statistics are then used as in evaluation, and are not updated.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(R, C, H, W) -> (R, C, H, W)."""
        if self.training and x.numel() == x.shape[1] and self.running_mean is not None:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)
        return super().forward(x)


def accept_single_values(expert: nn.Module) -> nn.Module:
    """Makes every BatchNorm2d of an expert an :class:`ExpertBatchNorm2d`; returns the expert."""
    for module in expert.modules():
        if type(module) is nn.BatchNorm2d:
            # in place: the blocks of mmdet hold their norms under names of their own
            module.__class__ = ExpertBatchNorm2d
    return expert
