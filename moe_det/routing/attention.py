"""A gate that decides from what the experts computed."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..checks import is_integer
from .gates import GAPLinearGate, Gate


class AttentiveGate(Gate):
    """Attention over the experts: softmax_i(q . k_i / sqrt(h)) (arXiv 2302.14703, attentive gate).

    A query network turns the row into a hidden vector g of h values, q = W_q g; the key of expert i is W_k h_i, with
    h_i the spatial mean of its last features (a head's expert: of its tower; other experts: of their output). W_q and
    W_k have no bias, W_k is shared by the experts. The only values are the experts' outputs. Every expert runs
    on every row, even when ``top_k`` mixes fewer of them; :class:`~moe_det.routing.distillation.DistilledGate` fits
    a plain gate to it, which runs K. The gradient reaches an expert through its key as well as its output. NaN
    features of one expert make all routing weights NaN, because every row attends to that expert's key.

    Args:
        in_channels: C.
        num_experts: E.
        key_channels: channels of the experts' features; the layer knows them.
        hidden_channels: h; the paper takes 32 for small images, 128 or 256 for CIFAR-100.
        query: query network: a gate whose h outputs are g; None takes a ``GAPLinearGate``. In a config: the dict of a
            gate.

    Raises:
        ValueError: h is not a positive integer, or the query network has another number of outputs.
    """

    needs_keys = True
    default_hidden_channels = 32

    def __init__(
        self,
        in_channels: int,
        num_experts: int,
        key_channels: int,
        hidden_channels: int = default_hidden_channels,
        query: Gate | None = None,
    ) -> None:
        super().__init__(in_channels, num_experts)
        if not is_integer(hidden_channels, 1):
            raise ValueError(f'hidden_channels={hidden_channels!r}: expected an integer >= 1')
        self.query = GAPLinearGate(in_channels, hidden_channels) if query is None else query
        if self.query.num_experts != hidden_channels:
            raise ValueError(f'query has {self.query.num_experts} outputs, expected hidden_channels={hidden_channels}')
        self.to_query = nn.Linear(hidden_channels, hidden_channels, bias=False)
        self.to_key = nn.Linear(key_channels, hidden_channels, bias=False)

    def forward(self, feature: Tensor, keys: Tensor | None = None) -> Tensor:
        """Logits in full precision even under autocast.

        Args:
            feature: (R, C, H, W).
            keys: (R, E, D) pooled features of every expert.

        Returns:
            (R, E).

        Raises:
            ValueError: no keys.
        """
        if keys is None:
            raise ValueError(f"{type(self).__name__} decides from the experts' features: expected keys (R, E, D)")
        with torch.autocast(feature.device.type, enabled=False):
            hidden = self.query(feature)
            query = F.linear(hidden, self.to_query.weight.to(hidden.dtype))
            keys = F.linear(keys.to(hidden.dtype), self.to_key.weight.to(hidden.dtype))
            return torch.bmm(keys, query[:, :, None])[:, :, 0] / math.sqrt(query.shape[1])
