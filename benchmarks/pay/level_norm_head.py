"""A RetinaNet head with a norm per pyramid level, a control of experts that know the level."""

from __future__ import annotations

import copy

from mmcv.cnn import ConvModule
from mmdet.models.dense_heads import RetinaHead
from mmdet.registry import MODELS
from torch import Tensor, nn


class LevelNorms(nn.Module):
    """Copies of a norm, one for each level; a checkpoint of the one norm fills all.

    Args:
        norm: to copy.
        levels: L.
    """

    def __init__(self, norm: nn.Module, levels: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(copy.deepcopy(norm) for _ in range(levels))
        self.level = 0  # of the map that comes next

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) of :attr:`level` -> the same shape."""
        return self.norms[self.level](x)

    def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs) -> None:
        for name in self.norms[0].state_dict():
            if f'{prefix}{name}' in state_dict:
                value = state_dict.pop(f'{prefix}{name}')
                for level in range(len(self.norms)):
                    state_dict[f'{prefix}norms.{level}.{name}'] = value.clone()
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


@MODELS.register_module()
class LevelNormRetinaHead(RetinaHead):
    """RetinaHead whose convolutions are shared by all levels while each level has norms of its own.

    As in mmdet's RetinaSepBNHead (NAS-FPN, arXiv 1904.07392), for any norm, and a plain head's checkpoint loads.
    """

    def _init_layers(self) -> None:
        super()._init_layers()
        self._norms = []
        for conv in (module for module in self.modules() if isinstance(module, ConvModule)):
            norms = LevelNorms(conv.norm, self.prior_generator.num_levels)
            setattr(conv, conv.norm_name, norms)
            self._norms.append(norms)

    def forward(self, x: tuple[Tensor, ...]) -> tuple[list[Tensor], list[Tensor]]:
        """As RetinaHead's, level by level."""
        outputs = []
        for level, of_level in enumerate(x):
            for norms in self._norms:
                norms.level = level
            outputs.append(self.forward_single(of_level))
        scores, deltas = zip(*outputs, strict=True)
        return list(scores), list(deltas)
