"""Layers of factorised linear experts (muMoE, arXiv 2402.12550): a 1x1 convolution, an FFN, a classifier's last layer.

Every row (location, token or image) mixes all N experts at the cost of one layer. The coefficients are a
:class:`~moe_det.routing.routing.Routing` as of any layer with experts, with entmax weights: usage, constraints, routing
records, forced and knocked-out experts and the size report work on them. What an expert is worth alone differs: its
weights are a slice of shared factors, so it can be forced but not taken out, copied from a dense layer or pruned.
The hierarchy of several expert modes is not built.
"""

from __future__ import annotations

import copy
import dataclasses
from dataclasses import dataclass, field
from typing import Any

from mmcv.cnn.bricks.transformer import FFN
from torch import Tensor, nn
from torch.nn.modules.utils import _pair

from ..checks import check_count
from ..errors import MoEConfigError, unknown_name
from ..routing.router import Router
from ..routing.rows import RowLayout
from ..routing.selection import ENTMAX
from ..routing.tokens import TOKEN, token_layout
from .ffn_ends import InPlaceOfFFN
from .multilinear import MultilinearExperts, build_multilinear
from .settings import MoESettings

EVERY_POSITION = 2**16  # cells per axis, more than any map has pixels: each of them is a patch


@dataclass(frozen=True)
class MuSettings:
    """The keys of layers with factorised experts.

    Attributes:
        num_experts: N, at least 2; hundreds cost little.
        factors: ``cp`` (canonical polyadic) or ``tr`` (tensor ring, with 4 x 4 matrices for the experts).
        rank: of the factors; None takes the one at which gate and factors have the parameters of the layer.
        gate: gate to build; the default is the paper's with a layer norm.
        constraint: as in every MoE layer; the paper has none.
        noise: learned gate noise while training; the paper has none.
    """

    num_experts: int = 32
    factors: str = 'cp'
    rank: int | None = None
    gate: dict = field(default_factory=lambda: {'type': 'NormalisedLinearGate'})
    constraint: dict | list[dict] | tuple[dict, ...] | None = None
    noise: bool | None = False

    @classmethod
    def from_config(cls, cfg: dict, where: str) -> MuSettings:
        """Builds and checks settings.

        Raises:
            MoEConfigError: an unknown key, or fewer than two experts.
        """
        known = [f.name for f in dataclasses.fields(cls)]
        for key in cfg:
            if key not in known:
                raise MoEConfigError(f'{where}: {unknown_name("key", key, known)}')
        settings = cls(**cfg)
        check_count(where, 'num_experts', settings.num_experts, minimum=2)
        return settings

    def of_routing(self, unit: str, where: str, grid: int | None = None) -> MoESettings:
        """The same as keys of every MoE layer: a soft mixture of all experts with entmax weights."""
        keys = {name: getattr(self, name) for name in ('num_experts', 'gate', 'constraint', 'noise')}
        keys |= {'top_k': self.num_experts, 'soft_mixture': True, 'weighting': ENTMAX, 'unit': unit, 'grid': grid}
        return MoESettings.from_config(keys, where, (unit,))

    def build_experts(
        self, in_features: int, out_features: int, bias: bool, where: str, gate: bool = True
    ) -> MultilinearExperts:
        """Builds the factors; ``gate`` tells whether the gate's parameters are counted as theirs."""
        return build_multilinear(
            self.factors, self.num_experts, in_features, out_features, bias, self.rank, where, gate
        )


def build_router(settings: MoESettings, in_features: int, where: str) -> Router:
    """Builds the router of coefficients.

    Raises:
        MoEConfigError: an unknown gate or constraint, or a gate that wants the features of experts.
    """
    router = settings.build_router(in_features, where)
    assert router is not None  # of several experts
    return router


def coefficients(router: Router, rows: Tensor, layout: RowLayout) -> Tensor:
    """(R, N) coefficients of (R, C) rows, in the rows' dtype."""
    routing = router([rows[:, :, None, None]], layout)
    return routing.over_experts(routing.weights, 0.0).to(rows.dtype)


class MuConv2d(nn.Module):
    """A 1x1 convolution whose weights are mixed at every location from N factorised experts (muMoE, arXiv 2402.12550).

    It has the parameters and multiply-adds of the convolution that it replaces, whatever N is, and no dispatch. With
    the default gate all coefficients are equal at first. Takes the arguments of :class:`torch.nn.Conv2d` and the keys
    of :class:`MuSettings`::

        conv_cfg=dict(type='MuConv2d', num_experts=32)

    A checkpoint with a plain convolution does not fill it. In the size report each location is a patch; its test
    exchanges rows of different images at the same location, of which there are few with objects, so that it finds
    less than it does for larger patches.

    Args:
        in_channels: C.
        out_channels: C'.
        kernel_size: 1.
        stride: as in Conv2d.
        padding: 0.
        dilation: has no meaning for one pixel.
        groups: 1.
        bias: whether every expert has one.
        padding_mode: has no meaning without padding.
        **mu: keys of MuSettings.

    Raises:
        MoEConfigError: another convolution than a plain 1x1 one, or keys that cannot be built from.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = 'zeros',
        **mu: Any,
    ) -> None:
        super().__init__()
        where = f'MuConv2d({in_channels}, {out_channels})'
        for name, value, expected in (
            ('kernel_size', _pair(kernel_size), (1, 1)),
            ('padding', _pair(padding), (0, 0)),
            ('groups', groups, 1),
        ):
            if value != expected:
                raise MoEConfigError(
                    f'{where}.{name}={value}: factorised experts are linear maps of single pixels, expected '
                    f'{name}={expected}. Name the 1x1 convolutions that shall have them: model = '
                    "dict(type='WithExperts', detector=..., experts=[dict(modules=..., type='MuConv2d')])"
                )
        settings = MuSettings.from_config(mu, where)
        self.settings = settings.of_routing('patch', where, EVERY_POSITION)
        self.router = build_router(self.settings, in_channels, where)
        self.experts = settings.build_experts(in_channels, out_channels, bias, where)
        # ConvModule copies these from the convolution that it holds
        self.in_channels, self.out_channels, self.groups = in_channels, out_channels, groups
        self.kernel_size, self.stride = _pair(kernel_size), _pair(stride)
        self.padding, self.dilation = _pair(padding), _pair(dilation)
        self.transposed, self.output_padding, self.padding_mode = False, (0, 0), padding_mode

    def init_weights(self) -> None:
        """Leaves the factors as they were drawn; ConvModule leaves a convolution that has this method to itself."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C', H', W')."""
        x = x[:, :, :: self.stride[0], :: self.stride[1]].permute(0, 2, 3, 1)
        images, height, width = x.shape[:3]
        layout = RowLayout('patch', images, (height * width,), map_sizes=((height, width),))
        rows = x.flatten(0, 2)
        rows = self.experts(rows, coefficients(self.router, rows, layout))
        return rows.unflatten(0, (images, height, width)).permute(0, 3, 1, 2).contiguous()


class MuFFN(InPlaceOfFFN):
    """Factorised experts in place of the feed-forward network of a transformer layer (muMoE, arXiv 2402.12550).

    Every token has one set of coefficients, which all linear layers of the network use; activations and dropout are
    those of the network, identity and layer scale act after it. The gate's parameters are counted as the first layer's
    where ranks are matched, which is our own choice. A checkpoint with the FFN does not fill it. It comes into a
    detector with :class:`~moe_det.detectors.with_experts.WithExperts`::

        model = dict(type='WithExperts', detector='DINO', experts=[
            dict(modules='decoder.layers.*.ffn', type='MuFFN', num_experts=32)])

    Args:
        dense: the FFN to replace.
        label: its path, for messages and logs.
        **mu: keys of :class:`MuSettings`.

    Raises:
        MoEConfigError: keys that cannot be built from.
    """

    def __init__(self, dense: FFN, label: str, **mu: Any) -> None:
        super().__init__(dense)
        settings = MuSettings.from_config(mu, label)
        self.settings = settings.of_routing(TOKEN, label)
        self.router = build_router(self.settings, self.embed_dims, label)
        hidden = [self.feedforward_channels] * (self.num_fcs - 1)
        channels = [self.embed_dims, *hidden, self.embed_dims]
        biases = [module.bias is not None for module in dense.layers.modules() if isinstance(module, nn.Linear)]
        self.experts = nn.ModuleList(
            settings.build_experts(inputs, outputs, bias, label, gate=not number)
            for number, (inputs, outputs, bias) in enumerate(zip(channels[:-1], channels[1:], biases, strict=True))
        )
        self.between = nn.ModuleList(
            nn.Sequential(*(copy.deepcopy(part) for part in layer[1:])) for layer in list(dense.layers)[: len(hidden)]
        )

    def init_weights(self) -> None:
        """Leaves the factors as they were drawn."""

    def run_experts(self, x: Tensor) -> Tensor:
        rows = x.flatten(0, -2)
        layout = token_layout(TOKEN, x.shape[0], x[0, ..., 0].numel() if len(x) else 0)
        mixing = coefficients(self.router, rows, layout)
        for number, experts in enumerate(self.experts):
            rows = experts(rows, mixing)
            if number < len(self.between):
                rows = self.between[number](rows)
        return rows.reshape(x.shape)


class MuLinear(nn.Module):
    """Factorised experts in place of the last linear layer of an image classifier (muMoE, arXiv 2402.12550).

    One set of coefficients for each image. It comes into a classifier with
    :class:`~moe_det.detectors.with_experts.WithExperts`::

        model = dict(type='WithExperts', detector='ResNetClassifier', experts=[dict(modules='fc', type='MuLinear')])

    Args:
        dense: the layer to replace.
        label: its path, for messages and logs.
        **mu: keys of :class:`MuSettings`.

    Raises:
        MoEConfigError: keys that cannot be built from.
    """

    def __init__(self, dense: nn.Linear, label: str, **mu: Any) -> None:
        super().__init__()
        settings = MuSettings.from_config(mu, label)
        self.settings = settings.of_routing('image', label)
        self.router = build_router(self.settings, dense.in_features, label)
        self.in_features, self.out_features = dense.in_features, dense.out_features
        self.experts = settings.build_experts(self.in_features, self.out_features, dense.bias is not None, label)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C) -> (N, C')."""
        return self.experts(x, coefficients(self.router, x, RowLayout('image', len(x), (1,))))
