"""What a config says about the experts of a RetinaNet head."""

from __future__ import annotations

from dataclasses import dataclass

from ..checks import check_choice, check_flag
from ..errors import MoEConfigError, unknown_name
from ..layers.row_choice import check_no_row_is_lost
from ..layers.settings import MoESettings, split_settings
from ..layers.shard_settings import OF_SHARDS, settings_of_shards
from ..routing.kernel_mixture import OUTPUTS
from .distillation import DenseTeacher, MutualDistillation, build_distillation

PLACEMENTS = ('branch', 'tower', 'first', 'last', 'shards')
BRANCHES = ('cls', 'reg')
CLASS_MIXTURES = ('probabilities', 'logits')


@dataclass(frozen=True)
class HeadSettings:
    """The keys of ``bbox_head.moe`` that other MoE layers have not.

    :class:`~moe_det.models.moe_retina_head.MoERetinaHead` explains them.

    Attributes:
        branches: those with experts, of ``'cls'`` and ``'reg'``.
        placement: what an expert replaces.
        width: factor of an expert's inner channels, or ``'matched'``.
        shared_gate: whether one decision serves both branches.
        shards: G, slices of the last convolution and the predictor; 1 in other placements.
        copies: R, alternatives of a shard; the number of experts in other placements.
        class_mixture: what is mixed of whole class branches, ``'probabilities'`` or ``'logits'``.
        distillation: how experts learn from each other; None: not at all.
    """

    branches: tuple[str, ...]
    placement: str
    width: float | str
    shared_gate: bool
    shards: int
    copies: int
    class_mixture: str
    distillation: MutualDistillation | DenseTeacher | None = None


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
    placement = own.get('placement', 'branch')
    check_choice(where, 'placement', placement, PLACEMENTS)
    if placement == 'shards':
        common = settings_of_shards(common, own, where)
    for key in own.keys() & OF_SHARDS.keys():
        if placement != 'shards':
            raise MoEConfigError(f"{where}.{key}={own[key]!r}: applies to placement='shards' alone")
    settings = MoESettings.from_config(common, where)
    branches = own.get('branches', BRANCHES)
    if not isinstance(branches, (str, list, tuple)):
        raise MoEConfigError(f"{where}.branches={branches!r}: expected 'cls', 'reg' or a list of both")
    branches = (branches,) if isinstance(branches, str) else tuple(branches)
    if not branches:
        raise MoEConfigError(f"{where}.branches is empty: without 'cls' or 'reg' there would be no MoE layer")
    for branch in branches:
        check_choice(where, 'branches', branch, BRANCHES)
    shared_gate = own.get('shared_gate', False)
    check_flag(where, 'shared_gate', shared_gate)
    if shared_gate and set(branches) != set(BRANCHES):
        raise MoEConfigError(f'{where}.shared_gate: needs both branches, branches={branches!r}')
    class_mixture = own.get('class_mixture', CLASS_MIXTURES[0])
    check_choice(where, 'class_mixture', class_mixture, CLASS_MIXTURES)
    if 'class_mixture' in own and settings.mixes != OUTPUTS:
        raise MoEConfigError(
            f'{where}.class_mixture={class_mixture!r}: with mixes={settings.mixes!r} there is one output; take it out'
        )
    if 'class_mixture' in own and placement != 'branch':
        raise MoEConfigError(
            f"{where}.class_mixture={class_mixture!r}: applies to placement='branch' alone; experts of "
            f'placement={placement!r} are mixed before anything is a class probability'
        )
    check_no_row_is_lost(settings, where)
    if settings.rows_per_expert is not None and (placement, class_mixture) == ('branch', CLASS_MIXTURES[0]):
        raise MoEConfigError(
            f'{where}.rows_per_expert={settings.rows_per_expert}: a patch that no expert chose has no class '
            "probability; use class_mixture='logits' or another placement"
        )
    shards = own.get('shards', OF_SHARDS['shards']) if placement == 'shards' else 1
    return settings, HeadSettings(
        branches=branches,
        placement=placement,
        width=own.get('width', 1),
        shared_gate=shared_gate,
        shards=shards,
        copies=settings.num_experts // shards,
        class_mixture=class_mixture,
        distillation=build_distillation(own.get('distillation'), settings, placement, where),
    )
