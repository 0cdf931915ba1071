"""Three other ways to run K of E experts per row, as references: same outputs and gradients, other costs.

Each takes the rows (R, C, H, W) and the routing of our own layer, so that gate and decision are the same in all.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moe_det.routing import Routing

Experts = Sequence[nn.Module]


def boolean_mask(rows: Tensor, routing: Routing, experts: Experts) -> Tensor:
    """One boolean mask per expert and an output buffer for all experts and rows, as published CNN code does.

    Every expert's outputs are written into its slice of zeros (E, R, C', H', W'); the buffer is multiplied by the
    (R, E) weights and summed over E. Reading and writing through a mask makes the host wait, twice per expert forward
    and again backward, and the backward pass handles the whole buffer once per write.
    """
    weights = routing.over_experts(routing.log_weights.exp(), 0.0).to(rows.dtype)
    buffer = None
    for number, expert in enumerate(experts):
        mask = weights[:, number] != 0
        chosen = rows[mask]
        if not len(chosen):
            continue
        output = expert(chosen)
        if buffer is None:
            buffer = output.new_zeros(len(experts), len(rows), *output.shape[1:])
        buffer[number, mask] = output
    return (buffer * weights.t().reshape(*weights.t().shape, 1, 1, 1)).sum(0)


def index_add_loop(rows: Tensor, routing: Routing, experts: Experts) -> Tensor:
    """A loop over experts: skip the unused, gather the rows, run, weight, add into the output."""
    weights = routing.log_weights.exp()
    total = None
    for number, expert in enumerate(experts):
        mask = routing.indices == number
        if not mask.any():  # the host waits
            continue
        row, slot = torch.where(mask)  # and waits
        output = expert(rows[row])
        if total is None:
            total = output.new_zeros(len(rows), *output.shape[1:])
        total.index_add_(0, row, output * weights[row, slot].reshape(-1, 1, 1, 1).to(output.dtype))
    return total


class GroupedConvolutions(nn.Module):
    """The chosen kernels of every row gathered, then one grouped convolution per layer with R * K groups.

    No wait for the host and no loop, at the price of a copy of the chosen kernels per row and of grouped kernels. The
    parameters are stored as stacks over experts.

    Args:
        experts: E towers of 3x3 convolutions with bias, each followed by a ReLU.
    """

    def __init__(self, experts: Experts) -> None:
        super().__init__()
        towers = [[module for module in expert.modules() if isinstance(module, nn.Conv2d)] for expert in experts]
        self.weights = nn.ParameterList(torch.stack([c.weight.detach() for c in layer]) for layer in zip(*towers))  # noqa: B905
        self.biases = nn.ParameterList(torch.stack([c.bias.detach() for c in layer]) for layer in zip(*towers))  # noqa: B905
        self.padding = towers[0][0].padding

    def forward(self, rows: Tensor, routing: Routing) -> Tensor:
        """(R, C, H, W) -> (R, C', H, W)."""
        num_rows, top_k = routing.indices.shape
        chosen = routing.indices.flatten()
        groups = num_rows * top_k
        x = rows.repeat_interleave(top_k, dim=0)
        for weight, bias in zip(self.weights, self.biases, strict=True):
            kernels = weight.index_select(0, chosen).flatten(0, 1)
            x = F.conv2d(
                x.reshape(1, -1, *x.shape[2:]),
                kernels,
                bias.index_select(0, chosen).flatten(),
                1,
                self.padding,
                1,
                groups,
            )
            x = F.relu(x.reshape(groups, -1, *x.shape[2:]), inplace=True)
        weights = routing.log_weights.exp().to(x.dtype).reshape(num_rows, top_k, 1, 1, 1)
        return (x.unflatten(0, (num_rows, top_k)) * weights).sum(1)
