"""A feature pyramid that does not train."""

from __future__ import annotations

from mmdet.models.necks import FPN


class FrozenFPN(FPN):
    """mmdet's FPN with all parameters frozen; names and checkpoints are those of FPN.

    arXiv 2204.10598 trains its RetinaNet experts on a frozen backbone and pyramid. For the backbone use
    ``frozen_stages=4``. Freezing at construction, not by a hook, lets data-parallel wrappers see it.
    """

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.requires_grad_(False)

    def train(self, mode: bool = True) -> FrozenFPN:
        """Keeps norm layers in evaluation mode."""
        return super().train(False)
