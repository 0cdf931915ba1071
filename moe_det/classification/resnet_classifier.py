"""A backbone and a linear layer on its pooled features: the image classifiers of arXiv 2204.10598."""

from __future__ import annotations

from mmdet.registry import MODELS
from torch import Tensor, nn

from ..errors import MoEConfigError
from ..routing.gates import global_average
from .base import MoEClassifier, choose_in_evaluation


class ResNetClassifier(MoEClassifier):
    """ResNet, global average pooling, linear layer (arXiv 2204.10598, CIFAR-100).

    The paper's ResNet-18 is ``SmallImageResNet``, and with experts ``MoEResNet`` with ``small_images=True``; both want
    ``init_cfg=[]`` (PyTorch's initialisation) and ``norm_eval=False``::

        model = dict(type='ResNetClassifier', num_classes=100, backbone=dict(
            type='MoEResNet', depth=18, small_images=True, norm_eval=False, init_cfg=[],
            moe=dict(stages=(4,), num_experts=4, top_k=2, constraint=dict(type='KLConstraint', weight=0.5))))

    Args:
        backbone: a ResNet of mmdet's registry; the last of its maps is classified.
        num_classes: K.
        **kwargs: arguments of :class:`~moe_det.classification.base.MoEClassifier`.

    Raises:
        MoEConfigError: ``backbone`` builds something whose width is not known.
    """

    def __init__(self, backbone: dict, num_classes: int, **kwargs) -> None:
        super().__init__(num_classes, **kwargs)
        self.backbone = MODELS.build(backbone)
        channels = getattr(self.backbone, 'feat_dim', None)
        if not isinstance(channels, int):
            raise MoEConfigError(
                f'model.backbone: a {type(self.backbone).__name__} does not tell the channels of its last map '
                '(feat_dim), as the ResNets of mmdet and MoEResNet do'
            )
        last = len(self.backbone.res_layers) - 1
        if last not in self.backbone.out_indices:
            raise MoEConfigError(
                f'model.backbone.out_indices={self.backbone.out_indices!r}: the last stage, {last}, is classified'
            )
        self.fc = nn.Linear(channels, num_classes)
        choose_in_evaluation(self, self.test_top_k)

    def classify(self, inputs: Tensor) -> Tensor:
        """(N, C, H, W) normalised images -> (N, K) logits."""
        return self.fc(global_average(self.backbone(inputs)[-1]).to(next(self.fc.parameters()).dtype))
