"""Gates: feature map -> one logit per expert.

Every gate maps (R, C, H, W) to (R, E) in fp32 (fp64 for fp64 input), whatever autocast says. ReLUs are left out where
the published gates have none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..checks import is_integer

if TYPE_CHECKING:
    from .constraint import Constraint


def global_average(feature: Tensor) -> Tensor:
    """(R, C, H, W) -> (R, C) spatial mean, accumulated in at least fp32."""
    dtype = torch.promote_types(feature.dtype, torch.float32)
    if feature.shape[2] == feature.shape[3] == 1:  # tokens and regions, of which there are many: nothing to sum
        return feature[:, :, 0, 0].to(dtype)
    total = feature.sum(dim=(2, 3), dtype=dtype)
    # not mean(), whose gradient divides every pixel: this one divides (R, C) and expands
    return total / (feature.shape[2] * feature.shape[3])


class Gate(nn.Module):
    """Base of the gates; a subclass defines :meth:`logits` and takes ``in_channels`` and ``num_experts``.

    Args:
        in_channels: C.
        num_experts: E.

    Attributes:
        needs_keys: whether the gate is called with the experts' features too; every expert then runs on every row.
        freezes_experts: whether the gate is fitted to experts that must not change.
    """

    freezes_experts: bool = False

    def __init__(self, in_channels: int, num_experts: int) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.num_experts = num_experts

    @property
    def needs_keys(self) -> bool:
        return False

    def forward(self, feature: Tensor, keys: Tensor | None = None) -> Tensor:
        """(R, C, H, W) -> (R, E) logits, in full precision even under autocast.

        Args:
            feature: (R, C, H, W).
            keys: (R, E, D) pooled features of every expert, for a gate that needs them.
        """
        with torch.autocast(feature.device.type, enabled=False):
            return self.logits(feature)

    def constraints(self) -> list[Constraint]:
        """Constraints that training the gate needs in addition to the layer's own."""
        return []

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        """A plain gate takes the student of a distilled one, an attentive gate its teacher."""
        if any(key.startswith(f'{prefix}student.') for key in state_dict):
            part = 'teacher.' if self.needs_keys else 'student.'
            for key in [key for key in state_dict if key.startswith(prefix)]:
                value, name = state_dict.pop(key), key.removeprefix(prefix)
                if name.startswith(part):
                    state_dict[prefix + name.removeprefix(part)] = value
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def logits(self, feature: Tensor) -> Tensor:
        """Computes the logits with autocast off."""
        raise NotImplementedError(f'{type(self).__name__} does not define logits()')


def _linear(layer: nn.Linear, pooled: Tensor) -> Tensor:
    """Applies a linear layer in the precision of its input, even when the model was cast to half."""
    return F.linear(pooled, layer.weight.to(pooled.dtype), layer.bias.to(pooled.dtype))


def _convolve(layer: nn.Conv2d, feature: Tensor) -> Tensor:
    """Applies a convolution in at least fp32; see :func:`_linear`."""
    feature = feature.to(torch.promote_types(feature.dtype, torch.float32))
    bias = None if layer.bias is None else layer.bias.to(feature.dtype)
    return F.conv2d(feature, layer.weight.to(feature.dtype), bias, padding=layer.padding)


class GAPLinearGate(Gate):
    """Global average pooling, then a linear layer: the GAP-FC gate of arXiv 2204.10598."""

    def __init__(self, in_channels: int, num_experts: int) -> None:
        super().__init__(in_channels, num_experts)
        self.fc = nn.Linear(in_channels, num_experts)

    def logits(self, feature: Tensor) -> Tensor:
        return _linear(self.fc, global_average(feature))


class ConvGAPGate(Gate):
    """3x3 convolution without padding and nonlinearity, average pooling, linear layer: Conv-GAP of arXiv 2204.10598.

    Maps smaller than the kernel are zero-padded to 3 pixels, so that the smallest pyramid levels work.

    Args:
        in_channels: C.
        num_experts: E.
        hidden_channels: output channels of the convolution.
    """

    def __init__(self, in_channels: int, num_experts: int, hidden_channels: int = 256) -> None:
        super().__init__(in_channels, num_experts)
        self.conv = nn.Conv2d(in_channels, hidden_channels, 3)
        self.fc = nn.Linear(hidden_channels, num_experts)

    def logits(self, feature: Tensor) -> Tensor:
        missing_height = max(0, 3 - feature.shape[2])
        missing_width = max(0, 3 - feature.shape[3])
        if missing_height or missing_width:
            feature = F.pad(
                feature,
                (
                    missing_width // 2,
                    missing_width - missing_width // 2,
                    missing_height // 2,
                    missing_height - missing_height // 2,
                ),
            )
        return _linear(self.fc, global_average(_convolve(self.conv, feature)))


class TwoConvGAPGate(Gate):
    """Two 3x3 convolutions (C -> hidden, normalised, -> E), then average pooling: 2Conv-GAP of arXiv 2509.05086.

    The original normalises with BatchNorm. This gate uses GroupNorm with one group, because BatchNorm would let an
    image's routing depend on the other images of its batch.

    Args:
        in_channels: C.
        num_experts: E.
        hidden_channels: channels between the convolutions.
    """

    def __init__(self, in_channels: int, num_experts: int, hidden_channels: int = 8) -> None:
        super().__init__(in_channels, num_experts)
        self.conv1 = nn.Conv2d(in_channels, hidden_channels, 3, padding=1)
        self.norm = nn.GroupNorm(1, hidden_channels)
        self.conv2 = nn.Conv2d(hidden_channels, num_experts, 3, padding=1)

    def logits(self, feature: Tensor) -> Tensor:
        hidden = _convolve(self.conv1, feature)
        weight, bias = self.norm.weight.to(hidden.dtype), self.norm.bias.to(hidden.dtype)
        hidden = F.group_norm(hidden, self.norm.num_groups, weight, bias, self.norm.eps)
        return global_average(_convolve(self.conv2, hidden))


class NormalisedLinearGate(Gate):
    """Pooled features through a linear layer without bias that starts at 0, then a norm without weights of its own.

    The gate of muMoE (arXiv 2402.12550), there on single tokens: all experts have the same logit at first. The paper
    normalises each expert's logits over the batch (BatchNorm); then the routing of an image depends on the others in
    training, and on running statistics in evaluation. The default here normalises each row's logits over the experts,
    so that rows are independent; with two experts that leaves a sign alone.

    Args:
        in_channels: C.
        num_experts: E.
        norm: ``'layer'`` over the experts, or ``'batch'`` over the rows as in the paper.
    """

    def __init__(self, in_channels: int, num_experts: int, norm: str = 'layer') -> None:
        super().__init__(in_channels, num_experts)
        if norm not in ('layer', 'batch'):
            raise ValueError(f"norm={norm!r}: expected 'layer' or 'batch'")
        self.weight = nn.Parameter(torch.zeros(num_experts, in_channels))
        self.norm = nn.BatchNorm1d(num_experts, affine=False) if norm == 'batch' else None

    def logits(self, feature: Tensor) -> Tensor:
        pooled = global_average(feature)
        logits = F.linear(pooled, self.weight.to(pooled.dtype))
        if self.norm is None:
            return F.layer_norm(logits, logits.shape[1:])
        if len(logits) < 2:  # the variance of one value is meaningless: as in evaluation
            mean, variance = self.norm.running_mean, self.norm.running_var
            return F.batch_norm(logits, mean, variance, training=False, eps=self.norm.eps)
        return self.norm(logits)


class MLPGate(Gate):
    """Global average pooling, then linear layers with ReLU between them; SMoE-VAE (arXiv 2509.10025) has 64 and 32.

    Args:
        in_channels: C.
        num_experts: E.
        hidden: widths of the hidden layers, at least one.

    Raises:
        ValueError: a width that is not an integer >= 1, or none.
    """

    def __init__(self, in_channels: int, num_experts: int, hidden: Sequence[int] = (64, 32)) -> None:
        super().__init__(in_channels, num_experts)
        if isinstance(hidden, str) or not hidden or not all(is_integer(width, 1) for width in hidden):
            raise ValueError(f'hidden={hidden!r}: expected a list of integers >= 1')
        widths = [in_channels, *hidden, num_experts]
        layers = [nn.Linear(a, b) for a, b in zip(widths, widths[1:], strict=False)]
        self.fcs = cast('Sequence[nn.Linear]', nn.ModuleList(layers))  # torch's ModuleList does not say what it holds

    def logits(self, feature: Tensor) -> Tensor:
        x = global_average(feature)
        for number, layer in enumerate(self.fcs):
            x = _linear(layer, x.relu() if number else x)
        return x
