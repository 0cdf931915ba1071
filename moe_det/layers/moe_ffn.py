"""Feed-forward networks of transformers with experts: rows are tokens or queries, windows or images."""

from __future__ import annotations

import contextlib
import copy
import re
from collections.abc import Iterator
from typing import Any, Literal

import torch
from mmcv.cnn.bricks.transformer import FFN
from mmengine.model import initialize
from torch import Tensor, nn

from ..checks import check_choice
from ..errors import MoEConfigError, unknown_name
from ..routing.dispatch import touch_idle
from ..routing.kept_weights import KeptWeights
from ..routing.tokens import TOKEN, token_layout
from ..routing.windows import WINDOW, Windows
from .dense_start import slice_of, start_from_dense
from .ffn_ends import InPlaceOfFFN
from .flat_rows import FlatExperts, check_flat, mixed
from .row_choice import check_no_row_is_lost
from .settings import MoESettings, split_settings
from .shard_settings import OF_SHARDS, settings_of_shards
from .width import inner_width

FFN_UNITS = (TOKEN, WINDOW, 'image')
FFN_PLACEMENTS = ('ffn', 'shards')
OWN_KEYS = ('placement', 'width', *OF_SHARDS)


def ffn_shard_axis(name: str) -> int | Literal['sum']:
    """How the shards' tensors of this name make up the dense one's: side by side along an axis, or by their sum."""
    if name == 'layers.1.bias':
        return 'sum'
    return 1 if name == 'layers.1.weight' else 0  # of the first layer; an activation's one value is not cut


class FFNExpert(nn.Module):
    """The linear layers and activations of an FFN, with its names; what has no weights comes after the mixture.

    Args:
        dense: the FFN.
        hidden: channels between the linear layers.
    """

    def __init__(self, dense: FFN, hidden: int) -> None:
        super().__init__()
        layers, channels = [], dense.embed_dims
        for linear, activation, dropout in list(dense.layers)[: dense.num_fcs - 1]:
            parts = (type(linear)(channels, hidden), copy.deepcopy(activation), copy.deepcopy(dropout))
            layers.append(nn.Sequential(*parts))
            channels = hidden
        last = type(dense.layers[dense.num_fcs - 1])
        self.layers = nn.Sequential(*layers, last(channels, dense.embed_dims))

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) -> (..., C)."""
        return self.layers(x)


class MoEFFN(InPlaceOfFFN):
    """Experts in place of the feed-forward network (FFN) of a transformer layer: of DETR's family, of Swin.

    Each token, which in a decoder is an object query, runs K of E experts (Switch Transformer, arXiv 2101.03961). With
    ``unit='window'`` the tokens of a window of Swin's attention decide together (windows of shifted blocks are those of
    the others, so that each is one place of the image), with ``unit='image'`` all tokens of an image. The
    identity, dropout and layer scale of the FFN act after the mixture. A checkpoint with the FFN fills every expert,
    plus noise; with ``weighting='straight_through'``, several experts, or shards, the model then initially computes
    what the dense one does. Put it into a detector with
    :class:`~moe_det.detectors.with_experts.WithExperts`::

        model = dict(type='WithExperts', detector='DINO', experts=[
            dict(modules='decoder.layers.*.ffn', type='MoEFFN', num_experts=4, top_k=1)])

    Args:
        dense: the FFN to replace.
        label: its path, for messages and logs.
        windows: cuts the map of the FFN's tokens, for ``unit='window'``; of Swin alone.
        **moe: keys of :class:`~moe_det.layers.settings.MoESettings` and

            - ``placement``: what an expert replaces: the whole ``ffn`` (default), or one of the ``shards`` that its
              hidden channels are cut into; a row then runs one copy of each shard, at the cost of the FFN.
            - ``shards`` and ``copies``: of ``placement='shards'``, number of slices, which must divide the hidden
              channels, and of alternatives of each; default 2 and 4. With ``shared_expert`` there is one more slice,
              which every row runs. ``num_experts`` and ``top_k`` follow.
            - ``width``: factor of an expert's hidden channels, or ``'matched'`` for the experts that a row runs, shared
              ones included, at the cost of the FFN; default 1.

    Raises:
        MoEConfigError: MoE keys that cannot be built from, or hidden channels that cannot be cut.
    """

    def __init__(self, dense: FFN, label: str, windows: Windows | None = None, **moe: Any) -> None:
        super().__init__(dense)
        self.windows = windows
        common, own = split_settings(moe)
        for key in own:
            if key not in OWN_KEYS:
                known = (*MoESettings.__dataclass_fields__, *OWN_KEYS)
                raise MoEConfigError(f'{label}: {unknown_name("key", key, known)}')
        placement = own.get('placement', 'ffn')
        check_choice(label, 'placement', placement, FFN_PLACEMENTS)
        self.cut = placement == 'shards'
        if self.cut:
            common = settings_of_shards(common, own, label)
        for key in own.keys() & OF_SHARDS.keys():
            if not self.cut:
                raise MoEConfigError(f"{label}.{key}={own[key]!r}: applies to placement='shards' alone")
        self.settings = MoESettings.from_config({'unit': TOKEN, **common}, label, FFN_UNITS)
        check_flat(self.settings, label, 'token')
        if self.settings.unit == WINDOW and windows is None:
            raise MoEConfigError(f"{label}.unit='window': its tokens lie in no windows, those of Swin's blocks do")
        if not self.add_identity:
            check_no_row_is_lost(self.settings, label)
        slots = own.get('shards', OF_SHARDS['shards']) if self.cut else 1
        hidden = self._hidden_channels(own.get('width', 1), slots, label)
        self.router = self.settings.build_router(
            self.embed_dims, label, key_channels=self.embed_dims, slots=slots if self.cut else None
        )
        make_expert = self.settings.expert_maker(
            lambda: FFNExpert(dense, hidden), label, self.embed_dims, self.embed_dims
        )
        self.expert_group = self.settings.build_experts(make_expert, slots=slots, group=FlatExperts)
        if self.router is not None and self.router.gate.freezes_experts:
            self.expert_group.freeze()
        self.expert_group.cut = self.cut
        if self.cut:
            self._cut(self._draw_whole())
        self.expert_group.start_common()

    def _hidden_channels(self, width: float | str, slots: int, label: str) -> int:
        """Hidden channels of an expert."""
        hidden, channels = self.feedforward_channels, self.embed_dims
        if not self.cut:

            def cost(inner: int) -> int:
                return 2 * channels * inner + (self.num_fcs - 2) * inner * inner

            return inner_width(width, hidden, cost, cost(hidden), self.settings.experts_run, label)
        if self.num_fcs != 2:
            raise MoEConfigError(f"{label}.placement='shards': cuts two linear layers, this FFN has {self.num_fcs}")
        slices = slots + self.settings.shared_expert
        if hidden % slices:
            given = f'{label}.shards={slots}' + (' and a shared expert' if self.settings.shared_expert else '')
            raise MoEConfigError(f'{given}: {slices} slices do not divide {hidden} hidden channels')
        return hidden // slices

    # -- initialisation ----------------------------------------------------------------------------------------

    def init_weights(self) -> None:
        """Initialises the experts as the FFN's ``init_cfg`` says."""
        with self.starting():
            if self.init_cfg:
                for part in self.whole if self.cut else self.expert_group.every_expert:
                    initialize(part, self.init_cfg)

    @contextlib.contextmanager
    def starting(self) -> Iterator[None]:
        """The context for initialisers.

        How large the values are that they draw depends on a matrix's size. Whole FFNs stand beside the shards inside,
        one for each copy, which are cut into the shards afterwards if they were drawn anew.
        """
        with self.expert_group.starting():
            if not self.cut or hasattr(self, 'whole'):
                yield
                return
            self.whole = self._draw_whole()
            try:
                with KeptWeights(self.whole, loaded=self.expert_group) as kept:
                    yield
                if kept.changed():
                    self._cut(self.whole)
            finally:
                del self.whole

    def _draw_whole(self) -> nn.ModuleList:
        """The linear layers of an uncut FFN for each copy, with an expert's names."""
        expert: Any = self.expert_group.experts[0]
        first, activation, last = expert.layers[0][0], expert.layers[0][1], expert.layers[1]
        channels, hidden = self.embed_dims, self.feedforward_channels
        whole = nn.ModuleList()
        for _ in range(self.expert_group.copies):
            inner = nn.Sequential(type(first)(channels, hidden), copy.deepcopy(activation))
            whole.append(nn.ModuleDict({'layers': nn.Sequential(inner, type(last)(hidden, channels))}))
        return whole.to(first.weight)

    @torch.no_grad()
    def _cut(self, whole: nn.ModuleList) -> None:
        """Every copy of a shard becomes its slice of that copy's FFN, a shared slice that of the first one."""
        group = self.expert_group
        for number, expert in enumerate(group.every_expert):
            dense = whole[number % group.copies]
            for name, parameter in expert.named_parameters():
                parameter.copy_(slice_of(dense.get_parameter(name), ffn_shard_axis(name), group, number))

    # -- forward -----------------------------------------------------------------------------------------------

    def run_experts(self, x: Tensor) -> Tensor:
        if self.router is None:
            return self.expert_group([x], None, None)[0]
        if not x.numel():  # no tokens: nothing to decide
            return touch_idle(x.clone(), [self.expert_group, self.router.gate]) if self.training else x
        tokens = x.flatten(1, -2) if x.dim() > 2 else x[:, None]
        if self.windows is not None and self.settings.unit == WINDOW:
            rows = self.windows.cut(tokens)
            seen = self.windows.means(rows)[:, :, None, None]
            output = mixed(self.expert_group, self.router, rows, seen, self.windows.layout(len(tokens)))
            return self.windows.join(output).reshape(x.shape)
        layout = token_layout(self.settings.unit, *tokens.shape[:2])
        if self.settings.unit == TOKEN:
            rows = tokens.flatten(0, 1)
            seen = rows[:, :, None, None]
        else:
            rows, seen = tokens, tokens.transpose(1, 2)[..., None]
        return mixed(self.expert_group, self.router, rows, seen, layout).reshape(x.shape)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        pattern = re.compile(re.escape(prefix) + r'(layers\..+)')
        dense = {key: match[1] for key in state_dict if (match := pattern.match(key))}
        experts, label = f'{prefix}expert_group.experts.', prefix.rstrip('.')
        start_from_dense(state_dict, dense, self.expert_group, experts, self.settings, label, ffn_shard_axis)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
