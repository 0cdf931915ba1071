"""What an FFN does after its linear layers, for layers that replace it."""

from __future__ import annotations

from mmcv.cnn.bricks.transformer import FFN
from torch import Tensor, nn


class InPlaceOfFFN(nn.Module):
    """Has the identity, dropout and layer scale of the FFN that it replaces; a subclass defines :meth:`run_experts`.

    Args:
        dense: the FFN.
    """

    def __init__(self, dense: FFN) -> None:
        super().__init__()
        self.embed_dims, self.feedforward_channels = dense.embed_dims, dense.feedforward_channels
        self.num_fcs, self.add_identity = dense.num_fcs, dense.add_identity
        self.gamma2, self.dropout, self.dropout_layer = dense.gamma2, dense.layers[-1], dense.dropout_layer
        self.init_cfg = dense.init_cfg

    def run_experts(self, x: Tensor) -> Tensor:
        """(N, ..., C) -> (N, ..., C), what the experts compute."""
        raise NotImplementedError(f'{type(self).__name__} does not define run_experts()')

    def forward(self, x: Tensor, identity: Tensor | None = None) -> Tensor:
        """As FFN does.

        Args:
            x: (N, ..., C), whose first axis are images.
            identity: what is added; ``x`` by default.

        Returns:
            (N, ..., C).
        """
        output = self.dropout_layer(self.gamma2(self.dropout(self.run_experts(x))))
        if not self.add_identity:
            return output
        return (x if identity is None else identity) + output
