"""Many linear experts as one factorised tensor (muMoE, arXiv 2402.12550).

A row x with coefficients a gets y_o = sum_n sum_i a_n W_nio x_i: the mixture of N linear maps. W is never built; its
factors cost about what one linear layer does. A bias is one more input that is always 1. Shape letters: N experts, I
inputs (with the bias), O outputs, R rank.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..checks import check_choice, check_count
from ..errors import MoEConfigError

RING_RANK = 4  # of the experts' core on both sides, as in the paper's mixers


class MultilinearExperts(nn.Module):
    """Base of the factorisations.

    Args:
        num_experts: N.
        in_features: I without the bias.
        out_features: O.
        rank: R.
        bias: whether every expert has a bias.
    """

    def __init__(self, num_experts: int, in_features: int, out_features: int, rank: int, bias: bool = True) -> None:
        super().__init__()
        self.num_experts, self.rank, self.bias = num_experts, rank, bias
        self.in_features, self.out_features = in_features, out_features
        self.inputs = in_features + bias

    def extra_repr(self) -> str:
        names = ('num_experts', 'in_features', 'out_features', 'rank', 'bias')
        return ', '.join(f'{name}={getattr(self, name)}' for name in names)

    def reset_parameters(self) -> None:
        """Draws the factors as the paper's code does."""
        raise NotImplementedError(f'{type(self).__name__} does not define reset_parameters()')

    def forward(self, x: Tensor, coefficients: Tensor) -> Tensor:
        """(..., in_features) and (..., N) -> (..., O)."""
        raise NotImplementedError(f'{type(self).__name__} does not define forward()')

    def experts(self) -> Tensor:
        """(N, I, O) the experts' weights; the last input is the bias."""
        raise NotImplementedError(f'{type(self).__name__} does not define experts()')


class CPExperts(MultilinearExperts):
    """W_nio = sum_r U1_nr U2_ir U3_or, so y = U3 ((U1^T a) * (U2^T [x; 1])) (canonical polyadic, "CPMMoE")."""

    def __init__(self, num_experts: int, in_features: int, out_features: int, rank: int, bias: bool = True) -> None:
        super().__init__(num_experts, in_features, out_features, rank, bias)
        self.of_experts = nn.Parameter(torch.empty(num_experts, rank))
        self.of_inputs = nn.Parameter(torch.empty(self.inputs, rank))
        self.of_outputs = nn.Parameter(torch.empty(rank, out_features))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.normal_(self.of_experts, 1.0, 1.0)
        bound = self.in_features**-0.5
        nn.init.uniform_(self.of_inputs, -bound, bound)
        nn.init.uniform_(self.of_outputs, -(self.rank**-0.5), self.rank**-0.5)

    def forward(self, x: Tensor, coefficients: Tensor) -> Tensor:
        offset = self.of_inputs[-1] if self.bias else None
        hidden = F.linear(x, self.of_inputs[: self.in_features].t(), offset)
        return (hidden * (coefficients @ self.of_experts)) @ self.of_outputs

    def experts(self) -> Tensor:
        return torch.einsum('nr,ir,ro->nio', self.of_experts, self.of_inputs, self.of_outputs)


class TRExperts(MultilinearExperts):
    """W_nio = trace(A_n B_i C_o) with matrices of r1 x r2, r2 x R and R x r1 (tensor ring, "TRMMoE").

    r1 and r2 are ``RING_RANK``; R is the rank.
    """

    def __init__(self, num_experts: int, in_features: int, out_features: int, rank: int, bias: bool = True) -> None:
        super().__init__(num_experts, in_features, out_features, rank, bias)
        self.of_experts = nn.Parameter(torch.empty(num_experts, RING_RANK, RING_RANK))
        self.of_inputs = nn.Parameter(torch.empty(self.inputs, RING_RANK, rank))
        self.of_outputs = nn.Parameter(torch.empty(rank, RING_RANK, out_features))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        with torch.no_grad():
            self.of_experts.zero_().diagonal(dim1=1, dim2=2).normal_(1.0, 1.0)
        bound = self.in_features**-0.5
        nn.init.uniform_(self.of_inputs, -bound, bound)
        bound = (RING_RANK * self.rank) ** -0.5
        nn.init.uniform_(self.of_outputs, -bound, bound)

    def forward(self, x: Tensor, coefficients: Tensor) -> Tensor:
        of_inputs = self.of_inputs.flatten(1)  # (I, r2 R)
        offset = of_inputs[-1] if self.bias else None
        hidden = F.linear(x, of_inputs[: self.in_features].t(), offset).unflatten(-1, (RING_RANK, self.rank))
        chosen = (coefficients @ self.of_experts.flatten(1)).unflatten(-1, (RING_RANK, RING_RANK))
        return (chosen @ hidden).transpose(-1, -2).flatten(-2) @ self.of_outputs.flatten(0, 1)

    def experts(self) -> Tensor:
        return torch.einsum('nab,ibc,cao->nio', self.of_experts, self.of_inputs, self.of_outputs)


FACTORS: dict[str, type[MultilinearExperts]] = {'cp': CPExperts, 'tr': TRExperts}


def matched_rank(
    factors: str, num_experts: int, in_features: int, out_features: int, bias: bool, gate: bool, where: str
) -> int:
    """The rank at which factors, and a linear gate, have the parameters of the linear layer, rounded up.

    CP: R = ceil((I O + O - I N) / (I + 1 + O + N)) with a bias (arXiv 2402.12550); the tensor ring by the same count,
    which is our own choice.

    Args:
        factors: ``'cp'`` or ``'tr'``.
        num_experts: N.
        in_features: I without the bias.
        out_features: O.
        bias: whether the layer has one.
        gate: whether the gate's I N parameters are the layer's; False where another layer counts them.
        where: config key, for messages.

    Raises:
        MoEConfigError: gate and experts alone have more parameters than the layer.
    """
    inputs = in_features + bias
    left = inputs * out_features - (in_features * num_experts if gate else 0)
    if factors == 'tr':
        left -= RING_RANK * RING_RANK * num_experts
        per_rank = RING_RANK * (inputs + out_features)
    else:
        per_rank = inputs + out_features + num_experts
    if left <= 0:
        raise MoEConfigError(
            f'{where}.num_experts={num_experts}: the gate of so many experts has as many parameters as the layer '
            f'({in_features} to {out_features} channels) that they replace; use fewer, or give a rank'
        )
    return math.ceil(left / per_rank)


def build_multilinear(
    factors: str,
    num_experts: int,
    in_features: int,
    out_features: int,
    bias: bool,
    rank: int | None,
    where: str,
    gate: bool = True,
) -> MultilinearExperts:
    """Builds experts of a factorisation; arguments as of :func:`matched_rank`, whose rank None takes.

    Raises:
        MoEConfigError: an unknown factorisation, or a rank that is no count or that cannot be matched.
    """
    check_choice(where, 'factors', factors, tuple(FACTORS))
    if rank is None:
        rank = matched_rank(factors, num_experts, in_features, out_features, bias, gate, where)
    check_count(where, 'rank', rank)
    return FACTORS[factors](num_experts, in_features, out_features, rank, bias)
