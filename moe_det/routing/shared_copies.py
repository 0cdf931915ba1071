"""Experts as a common part plus their own difference, so that every row trains every copy.

R independent copies of a dense branch each learn only from their own rows, R times more slowly. A group with
``common`` holds one common set of weights per slot (a group without slots has one) and in ``experts`` the differences;
expert e computes with their sums. Buffers, such as running statistics, stay each expert's own. The sums can be put in
place of the differences at any time (:func:`fold_common`); a checkpoint of either form loads into either.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from .kept_weights import KeptWeights

if TYPE_CHECKING:
    from .experts import ExpertGroup


class SummedExpert:
    """An expert of a group with a common part; the sums are computed when it is first called.

    Args:
        group: the group; its weights must not change while this is in use.
        number: of the expert, whose buffers and hooks are used.
    """

    def __init__(self, group: ExpertGroup, number: int) -> None:
        self._group = group
        self._number = number
        self._weights: dict[str, Tensor] | None = None
        self.gives_features = getattr(group.experts[number], 'gives_features', False)

    def __call__(self, rows: Tensor, **kwargs: Any) -> Any:
        """As the module's forward."""
        if self._weights is None:
            self._weights = self._group.weights_of(self._number)
        return torch.func.functional_call(self._group.experts[self._number], self._weights, (rows,), kwargs)


def common_parts(experts: Sequence[nn.Module], slots: int) -> nn.ModuleList:
    """One module per slot, built as an expert but without buffers, whose parameters are 0."""
    parts = nn.ModuleList(copy.deepcopy(experts[i]) for i in range(0, len(experts), len(experts) // slots))
    for module in parts.modules():
        for name in module._buffers:
            module._buffers[name] = None
        if isinstance(module, _NormBase):
            module.track_running_stats = False  # else a norm that is loaded expects them
    with torch.no_grad():
        for parameter in parts.parameters():
            parameter.zero_()
    return parts


@torch.no_grad()
def start_common(group: ExpertGroup) -> None:
    """Makes freshly initialised experts copies of the first one of their slot, plus noise.

    The noise is ``group.copy_noise`` times a parameter's own standard deviation, as for copies of a dense branch.
    """
    for slot, common in enumerate(group.common or ()):
        first = slot * group.copies
        for name, parameter in common.named_parameters():
            parameter.copy_(group.experts[first].get_parameter(name))
            deviation = parameter.float().std().item() if parameter.numel() > 1 else 0.0
            for expert in group.experts[first : first + group.copies]:
                difference = expert.get_parameter(name)
                difference.copy_(group.copy_noise * deviation * torch.randn_like(difference))


@torch.no_grad()
def _put_sums(group: ExpertGroup) -> None:
    """Puts the sums in the place of the differences."""
    for number, expert in enumerate(group.experts):
        for name, value in group.weights_of(number).items():
            expert.get_parameter(name).copy_(value)


def fold_group(group: ExpertGroup) -> None:
    """Puts the sums in the experts' place; the group has no common part afterwards."""
    _put_sums(group)
    group.common = None


class WholeExperts(KeptWeights):
    """A context in which the experts of a group with a common part hold whole weights, for initialisers to draw.

    Afterwards the first one of each slot is the common part and the others are its copies, see :func:`start_common`;
    where nothing was drawn since the start or since a checkpoint was loaded, all is as it was.

    Args:
        group: the group.
    """

    def __init__(self, group: ExpertGroup) -> None:
        super().__init__(group)
        self._group = group

    def note(self) -> None:
        assert self._group.common is not None  # of a group with a common part
        super().note()
        self._has_started = any(bool(value.any()) for value in self._group.common.parameters())
        _put_sums(self._group)
        with torch.no_grad():
            for value in self._group.common.parameters():
                value.zero_()
        self._sums = [value.detach().clone() for value in self._group.experts.parameters()]
        self._group.holds_whole = True

    def changed(self) -> bool:
        pairs = zip(self._group.experts.parameters(), self._sums, strict=True)
        return any(not torch.equal(value, whole) for value, whole in pairs)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)
        self._group.holds_whole = False
        if self._has_started and not self.changed():
            self.restore()
        else:
            start_common(self._group)


def fit_stored_form(state_dict: dict[str, Tensor], prefix: str, group: ExpertGroup) -> None:
    """Rewrites a checkpoint in place to the form that the group has: with a common part, or plain.

    Plain experts become their mean in each slot and the differences from it. A checkpoint of the group's own form
    stays as it is, bit for bit.

    Args:
        state_dict: what is loaded, of as many experts as the group has.
        prefix: of the group in it.
        group: the group.
    """
    has_common = any(key.startswith(f'{prefix}common.') for key in state_dict)
    if group.common is None and has_common:
        _fold_stored(state_dict, prefix, group.copies)
    elif group.common is not None and not has_common:
        _split_stored(state_dict, prefix, group)


def _fold_stored(state_dict: dict[str, Tensor], prefix: str, copies: int) -> None:
    pattern = re.compile(re.escape(prefix) + r'common\.(\d+)\.(.+)')
    for key, match in [(key, match) for key in state_dict if (match := pattern.match(key))]:
        slot, name = match.groups()
        common, first = state_dict.pop(key), int(slot) * copies
        for expert in range(first, first + copies):
            own = f'{prefix}experts.{expert}.{name}'
            if own in state_dict:
                state_dict[own] = common + state_dict[own]


def _split_stored(state_dict: dict[str, Tensor], prefix: str, group: ExpertGroup) -> None:
    for slot, part in enumerate(group.common or ()):
        experts = range(slot * group.copies, (slot + 1) * group.copies)
        for name, _ in part.named_parameters():
            keys = [f'{prefix}experts.{expert}.{name}' for expert in experts]
            if not all(key in state_dict for key in keys):
                continue
            values = torch.stack([state_dict[key] for key in keys])
            mean = values.double().mean(0).to(values.dtype)
            state_dict[f'{prefix}common.{slot}.{name}'] = mean
            for key, value in zip(keys, values, strict=True):
                state_dict[key] = value - mean
