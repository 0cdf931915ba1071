"""What a config says about the experts of a RetinaNet head."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import MoEConfigError, unknown_name
from ..layers.settings import MoESettings, check_choice, check_flag, split_settings
from .head_branch import BRANCHES, PLACEMENTS


@dataclass(frozen=True)
class HeadSettings:
    """The keys of ``bbox_head.moe`` that other MoE layers have not.

    :class:`~moe_det.models.moe_retina_head.MoERetinaHead` explains them.

    Attributes:
        branches: those with experts, of ``'cls'`` and ``'reg'``.
        placement: what an expert replaces.
        width: factor of an expert's inner channels, or ``'matched'``.
        shared_gate: whether one decision serves both branches.
    """

    branches: tuple[str, ...]
    placement: str
    width: float | str
    shared_gate: bool


def read_head_settings(moe: dict, where: str) -> tuple[MoESettings, HeadSettings]:
    """Checks the config's dict and tells the keys that every MoE layer has from the head's own.

    Args:
        moe: the dict.
        where: its path in the config, for messages.

    Raises:
        MoEConfigError: a key or value that cannot be built from.
    """
    if not isinstance(moe, dict):
        raise MoEConfigError(f'{where}={moe!r}: expected a dict')
    common, own = split_settings(dict(moe))
    for key in own:
        if key not in HeadSettings.__dataclass_fields__:
            known = (*MoESettings.__dataclass_fields__, *HeadSettings.__dataclass_fields__)
            raise MoEConfigError(f'{where}: {unknown_name("key", key, known)}')
    settings = MoESettings.from_config(common, where)
    branches = own.get('branches', BRANCHES)
    if not isinstance(branches, (str, list, tuple)):
        raise MoEConfigError(f"{where}.branches={branches!r}: expected 'cls', 'reg' or a list of both")
    branches = (branches,) if isinstance(branches, str) else tuple(branches)
    if not branches:
        raise MoEConfigError(f"{where}.branches is empty: without 'cls' or 'reg' there would be no MoE layer")
    for branch in branches:
        check_choice(where, 'branches', branch, BRANCHES)
    placement = own.get('placement', 'branch')
    check_choice(where, 'placement', placement, PLACEMENTS)
    shared_gate = own.get('shared_gate', False)
    check_flag(where, 'shared_gate', shared_gate)
    if shared_gate and set(branches) != set(BRANCHES):
        raise MoEConfigError(f'{where}.shared_gate: needs both branches, branches={branches!r}')
    return settings, HeadSettings(branches, placement, own.get('width', 1), shared_gate)
