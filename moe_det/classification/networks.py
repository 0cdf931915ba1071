"""The small convolutional networks of arXiv 2302.14703: experts and gates, and experts run side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..routing.gates import Gate
from .one_channel import conv_pool, is_faster


def _hidden_size(image_size: int, channels: Sequence[int], padding: int) -> int:
    """Values that the convolutions of a network hand to its first linear layer.

    Raises:
        ValueError: the images are too small for so many poolings.
    """
    size = image_size
    for _ in channels:
        size = (size + 2 * padding - 2) // 2
    if size < 1:
        raise ValueError(f'image_size={image_size}: too small for {len(channels)} convolutions with pooling')
    return channels[-1] * size**2


class SmallConvNet(nn.Module):
    """3x3 convolutions, each with ReLU and 2x2 max-pooling, then linear layers with ReLU between them.

    Args:
        in_channels: channels of the images.
        num_outputs: outputs of the last linear layer.
        image_size: height and width of the images.
        channels: output channels of each convolution.
        hidden: widths of the linear layers before the last one.
        norm: positions, from 0, of the convolutions that BatchNorm follows.
        padding: zero padding of the convolutions.

    Raises:
        ValueError: no convolution or hidden layer, or images that are too small for so many poolings.
    """

    gives_features = True

    def __init__(
        self,
        in_channels: int,
        num_outputs: int,
        image_size: int,
        channels: Sequence[int],
        hidden: Sequence[int],
        norm: Sequence[int] = (),
        padding: int = 0,
    ) -> None:
        super().__init__()
        if not channels or not hidden:
            raise ValueError(f'channels={tuple(channels)!r}, hidden={tuple(hidden)!r}: expected at least one of each')
        widths = [in_channels, *channels]
        convs = [nn.Conv2d(a, b, 3, padding=padding) for a, b in zip(widths, channels, strict=False)]
        # torch's containers do not say what they hold
        self.convs = cast('Sequence[nn.Conv2d]', nn.ModuleList(convs))
        self.norms = cast(
            'Mapping[str, nn.BatchNorm2d]', nn.ModuleDict({str(i): nn.BatchNorm2d(channels[i]) for i in norm})
        )
        self.padding = padding
        sizes = [_hidden_size(image_size, channels, padding), *hidden, num_outputs]
        linear = [nn.Linear(a, b) for a, b in zip(sizes, sizes[1:], strict=False)]
        self.fcs = cast('Sequence[nn.Linear]', nn.ModuleList(linear))

    def forward(self, x: Tensor, with_features: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        """(N, C, H, W) -> (N, outputs), and the last hidden layer before its ReLU where requested."""
        x = self.maps(x).flatten(1)
        for fc in self.fcs[:-1]:
            features = fc(x)
            x = features.relu()
        output = self.fcs[-1](x)
        return (output, features) if with_features else output

    def maps(self, x: Tensor, begin: int = 0) -> Tensor:
        """The convolutions from number ``begin`` on: (N, C, H, W) -> (N, C', H', W')."""
        for i in range(begin, len(self.convs)):
            x = _layer(x, self.convs[i].weight, self.convs[i].bias, self.padding, self._norm(i))
        return x

    def _norm(self, number: int) -> nn.BatchNorm2d | None:
        return self.norms[str(number)] if str(number) in self.norms else None


def _layer(x: Tensor, weight: Tensor, bias: Tensor | None, padding: int, norm: nn.BatchNorm2d | None) -> Tensor:
    """3x3 convolution, norm, ReLU and 2x2 max-pooling."""
    if bias is not None and is_faster(x, norm):
        return conv_pool(x, weight, bias, padding, norm)
    x = F.conv2d(x, weight, bias, padding=padding)
    x = x if norm is None else norm(x)
    return F.max_pool2d(x, 2).relu_()  # the same as pooling after the ReLU, at a quarter of the cost


class ConvNetGate(Gate):
    """A small convolutional network on the images: the gates of arXiv 2302.14703, which are larger than its experts.

    As the query network of ``AttentiveGate`` its outputs are the hidden vector. See ``SmallConvNet`` for the layers.

    Args:
        in_channels: channels of the images.
        num_experts: E.
        image_size: height and width of the images.
        channels: output channels of each 3x3 convolution, which ReLU and 2x2 max-pooling follow.
        hidden: widths of the linear layers before the last one.
        norm: positions, from 0, of the convolutions that BatchNorm follows.
        padding: zero padding of the convolutions.
    """

    def __init__(
        self,
        in_channels: int,
        num_experts: int,
        image_size: int,
        channels: Sequence[int],
        hidden: Sequence[int],
        norm: Sequence[int] = (),
        padding: int = 0,
    ) -> None:
        super().__init__(in_channels, num_experts)
        self.net = SmallConvNet(in_channels, num_experts, image_size, channels, hidden, norm, padding)

    def logits(self, feature: Tensor) -> Tensor:
        return self.net(feature.to(self.net.fcs[-1].weight.dtype))


def run_side_by_side(nets: Sequence[SmallConvNet], x: Tensor) -> tuple[Tensor, Tensor]:
    """Runs networks of one shape on the same images, as one network where that saves time.

    The same numbers as calling one after the other, rounding apart. The first convolution and the linear layers are
    one call for all networks. Later convolutions have inputs of their own and run one by one: as one convolution with
    groups they take longer.

    Args:
        nets: E networks.
        x: (N, C, H, W).

    Returns:
        Outputs (N, E, outputs) and last hidden layers before their ReLU (N, E, hidden).
    """
    experts = len(nets)
    if '0' in nets[0].norms:
        x = torch.stack([net.maps(x) for net in nets])
    else:
        firsts = [net.convs[0] for net in nets]
        weight, bias = (torch.cat([getattr(conv, name) for conv in firsts]) for name in ('weight', 'bias'))
        maps = _layer(x, weight, bias, nets[0].padding, None).unflatten(1, (experts, -1)).transpose(0, 1)
        x = torch.stack([net.maps(y, 1) for net, y in zip(nets, maps, strict=True)]) if len(nets[0].convs) > 1 else maps
    x = x.flatten(2)  # (E, N, D)
    last = len(nets[0].fcs) - 1
    for i in range(last + 1):
        weight, bias = (torch.stack([getattr(net.fcs[i], name) for net in nets]) for name in ('weight', 'bias'))
        if i == last:
            features, x = x, x.relu()
        x = torch.baddbmm(bias[:, None], x, weight.transpose(1, 2))
        if i < last - 1:
            x = x.relu()
    return x.transpose(0, 1), features.transpose(0, 1)
