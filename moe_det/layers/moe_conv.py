"""A convolution with experts, for the ``conv_cfg`` slot of mmdet's heads, necks and backbones."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from types import FrameType
from typing import Any, Literal

from mmengine.model import kaiming_init
from torch import nn
from torch.nn.modules.utils import _pair

from ..checks import check_count
from ..errors import MoEConfigError
from ..routing.rows import HALO
from .dense_start import start_from_dense
from .every_expert import EveryExpert
from .moe_layer import MoELayer
from .row_choice import check_no_row_is_lost
from .settings import MoESettings, split_settings


class NoSingleWeightError(MoEConfigError, AttributeError):
    """A detector computes with the weight of a convolution that is a mixture; to ``hasattr`` it is absent."""


class MoEConv2d(MoELayer):
    """E convolutions of which each routing row runs K (arXiv 2204.10598, single-conv variant).

    Takes the arguments of :class:`torch.nn.Conv2d` and the keys of
    :class:`~moe_det.layers.settings.MoESettings`. A checkpoint with a plain convolution in its place fills every
    expert, plus noise::

        conv_cfg=dict(type='MoEConv2d', num_experts=4, top_k=2, constraint=dict(type='KLConstraint'))

    Args:
        in_channels: C.
        out_channels: C'.
        kernel_size: as in Conv2d.
        stride: as in Conv2d; ``unit='patch'`` needs 1.
        padding: as in Conv2d.
        dilation: as in Conv2d.
        groups: as in Conv2d.
        bias: as in Conv2d.
        padding_mode: as in Conv2d; ``unit='patch'`` takes all but ``'circular'``.
        num_levels: calls of the module in one step (a tower shared by 5 levels: 5); needed for
            ``balance_over='level'``.
        **moe: keys of MoESettings.

    Raises:
        MoEConfigError: MoE keys that cannot be built from.
    """

    stands_for_experts = False  # whether weight and bias are those of every expert for now

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
        padding_mode: Literal['zeros', 'reflect', 'replicate', 'circular'] = 'zeros',
        *,
        num_levels: int = 1,
        **moe: Any,
    ) -> None:
        ours, rest = split_settings(moe)
        where = f'MoEConv2d({in_channels}, {out_channels})'
        settings = MoESettings.from_config({**ours, **rest}, where)
        check_count(where, 'num_levels', num_levels)
        check_no_row_is_lost(settings, where)
        if settings.unit == 'patch' and _pair(stride) != (1, 1):
            raise MoEConfigError(f"{where}.grid: unit='patch' does not fit a convolution with stride {stride}")
        if settings.unit == 'patch' and padding_mode == 'circular':
            raise MoEConfigError(f"{where}.grid: unit='patch' does not fit padding_mode='circular'")
        reach = [(step * (size - 1) + 1) // 2 for size, step in zip(_pair(kernel_size), _pair(dilation), strict=True)]
        super().__init__(
            settings,
            in_channels,
            lambda: nn.Conv2d(
                in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode
            ),
            where,
            num_levels,
            out_channels,
            halo=max(HALO, *reach),
        )
        # ConvModule copies these from the convolution that it holds
        self.in_channels, self.out_channels, self.groups = in_channels, out_channels, groups
        self.kernel_size, self.stride = _pair(kernel_size), _pair(stride)
        self.padding, self.dilation = _pair(padding), _pair(dilation)
        self.transposed, self.output_padding, self.padding_mode = False, (0, 0), padding_mode
        self.is_init = False
        self.init_weights()  # ConvModule leaves a convolution that has this method to itself

    def init_weights(self) -> None:
        """Initialises the experts as ConvModule does a plain convolution; later calls change nothing."""
        if self.is_init:
            return
        for expert in self.expert_group.every_expert:
            kaiming_init(expert)
        self.expert_group.start_common()
        self.is_init = True

    @contextlib.contextmanager
    def starting(self) -> Iterator[None]:
        """The context for initialisers: ``weight`` and ``bias`` stand for those of every expert."""
        with self.expert_group.starting():
            self.stands_for_experts = True
            try:
                yield
            finally:
                self.stands_for_experts = False

    def __getattr__(self, name: str) -> Any:
        if name not in ('weight', 'bias'):
            return super().__getattr__(name)
        if self.stands_for_experts and hasattr(self.expert_group.experts[0], name):
            return self._of_every_expert(name)
        # initialisers ask with hasattr and leave the experts as they are
        raise NoSingleWeightError(
            f'{_reader(self)} reads the {name} of MoEConv2d({self.in_channels}, {self.out_channels}), but every expert '
            "has one of its own. Take MoEConv2d out of that part's conv_cfg and name the convolutions that shall have "
            "experts: model = dict(type='WithExperts', detector=..., experts=[dict(modules=..., type='MoEConv2d')])"
        )

    def _of_every_expert(self, name: str) -> EveryExpert | None:
        group = self.expert_group
        # a shared expert's output is added to that of the others, which have the bias already
        experts = group.every_expert if name == 'weight' else group.experts
        found = [getattr(expert, name) for expert in experts]
        return None if found[0] is None else EveryExpert(found)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        dense = {f'{prefix}{name}': name for name in ('weight', 'bias') if f'{prefix}{name}' in state_dict}
        experts, label = f'{prefix}expert_group.experts.', prefix.rstrip('.')
        start_from_dense(state_dict, dense, self.expert_group, experts, self.settings, label)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def _reader(layer: nn.Module) -> str:
    """Class of the module whose method is running, the layer left out."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None:
        module = frame.f_locals.get('self')
        if isinstance(module, nn.Module) and module is not layer:
            return type(module).__name__
        frame = frame.f_back
    return 'the model'
