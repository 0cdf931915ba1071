"""The keys that every MoE layer takes from a config, checked in one place."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from mmdet.registry import MODELS
from torch import nn

from ..checks import check_choice, check_count, check_flag, is_integer, is_number
from ..errors import MoEConfigError, unknown_name
from ..registry import CONSTRAINTS, EXPERTS, build_named
from ..routing.dispatch import Mixture
from ..routing.experts import DISPATCH_MODES, ExpertGroup
from ..routing.kernel_mixture import KERNELS, MIXES, OUTPUTS, KernelMixture
from ..routing.mixtures import mix_linear
from ..routing.router import Router
from ..routing.rows import UNITS
from ..routing.selection import FULL_SOFTMAX, SOFTMAX, STRAIGHT_THROUGH, WEIGHTINGS
from ..routing.shared_experts import SharedExperts
from .expert_norm import accept_single_values
from .gates import build_gate
from .row_choice import check_rows_per_expert

BALANCE_OVER = ('all', 'level')


def check_expert_norm(where: str, norm_cfg: dict | None) -> None:
    """Raises MoEConfigError for synchronised norms: a process whose expert got no rows would block the others."""
    if norm_cfg is None:
        return
    kind = str(norm_cfg.get('type'))
    if 'SyncBN' in kind or 'SyncBatchNorm' in kind:
        raise MoEConfigError(
            f'{where}: norm_cfg type {norm_cfg["type"]!r} cannot be used inside experts, because processes whose '
            "expert got no rows would never join the synchronisation; use 'BN' or 'GN'"
        )


@dataclass(frozen=True)
class MoESettings:
    """What the experts of one place are and how rows reach them.

    Attributes:
        num_experts: E, number of experts; 1 builds the plain module without a gate.
        top_k: K, experts per routing row.
        gate: gate to build: ``GAPLinearGate``, ``ConvGAPGate``, ``TwoConvGAPGate``, or ``AttentiveGate``, which runs
            every expert, and ``DistilledGate``, which fits a plain gate to it.
        constraint: one constraint or a list of them; None leaves the experts unconstrained. Soft:
            ``KLConstraint``, ``ImportanceConstraint``, ``SwitchConstraint``, ``EntropyConstraint``,
            ``ZLossConstraint``, ``SampleSimilarityConstraint``. Hard: ``RelativeImportanceConstraint``,
            ``MeanImportanceConstraint``, ``SelectionBiasConstraint``.
        unit: what one decision covers: ``level`` (an image at a level), ``image`` (one decision for all levels)
            or ``patch`` (a cell of a grid laid over each level). A ``MoEFFN`` has ``token`` (default), ``window`` (of
            Swin) and ``image``, a ``MoELinear`` has ``roi``, a region of interest.
        grid: cells per axis for ``unit='patch'``, >= 2; not allowed for other units. An expert sees as much around its
            patch as its convolution reaches, so that the result equals that on the whole map; an expert of several
            convolutions sees one pixel (shards two) and treats everything beyond as padding.
        balance_over: rows among which usage is balanced: ``all`` or inside each ``level``.
        noise: learned gate noise while training; None takes it when all constraints are soft.
        shared_expert: adds an expert that runs on every row, or that many of them (DeepSeekMoE, arXiv 2401.06066);
            their output is added to the mixture.
        rows_per_expert: experts choose rows, so many each of an image at a level, instead of rows choosing experts
            (pMoE, arXiv 2306.04073), for ``unit='patch'`` or ``'token'``: no expert is idle, and nothing needs balance.
            ``top_k`` is then the largest number of experts that a row runs. Rows that no expert chose have the shared
            expert alone, which layers without a residual connection need.
        dispatch: ``sorted`` (cost of K experts) or ``all`` (all experts run on every row; for export and
            compilation).
        soft_mixture: confirms that ``top_k == num_experts`` is intended.
        copy_noise: relative standard deviation of the noise that is added to experts copied from a dense checkpoint,
            so that they differ.
        copy_redraw: share of each convolution's output channels, in [0, 1), that is redrawn for every expert copied
            from a dense checkpoint, with mean and standard deviation of the convolution; predictors keep their
            channels. Experts then differ more than noise can make them; initially the model no longer computes what
            the dense one does.
        copies_share: whether experts are a common part plus their own difference, so that every row trains every
            expert; for experts that start from a dense checkpoint. Checkpoints load either way.
        weighting: ``softmax`` weights, or with ``top_k=1`` ``straight_through``: the chosen expert has
            weight 1, and the gate learns from the gradient of its probability. Experts copied from a dense checkpoint
            then initially compute what the dense layer does. ``full_softmax`` takes the softmax over all experts before
            the choice, so that weights sum to less than 1 (DeepSeekMoE, arXiv 2401.06066). ``entmax`` weights are
            entmax-1.5 of the chosen logits (arXiv 1905.05702), many of them exactly 0: fewer than K experts run.
        mixes: ``outputs`` of the chosen experts, or their ``kernels``: a row runs one module whose weights are the
            mixture of theirs, at the cost of one expert regardless of E and K (CondConv, arXiv 1904.04971; SMEAR,
            arXiv 2306.03745). With ``top_k=num_experts`` every expert learns from every row.
        expert: your own class instead of the layer's experts: a dict with ``type`` and the class's arguments;
            ``in_channels`` and ``out_channels`` are passed as well. docs/architecture.md states its contract.
    """

    num_experts: int = 4
    top_k: int = 2
    gate: dict = field(default_factory=lambda: {'type': 'GAPLinearGate'})
    constraint: dict | list[dict] | tuple[dict, ...] | None = None
    unit: str = 'level'
    grid: int | None = None
    balance_over: str = 'all'
    noise: bool | None = None
    shared_expert: bool | int = False
    rows_per_expert: int | None = None
    dispatch: str = 'sorted'
    soft_mixture: bool = False
    copy_noise: float = 0.02
    copy_redraw: float = 0.0
    copies_share: bool = False
    weighting: str = SOFTMAX
    mixes: str = OUTPUTS
    expert: dict | None = None

    @classmethod
    def from_config(cls, cfg: dict, where: str, units: Sequence[str] = UNITS) -> MoESettings:
        """Builds and checks settings.

        Args:
            cfg: keys and values of a config.
            where: the config key that holds them, for messages.
            units: values of ``unit`` that the layer knows.

        Raises:
            MoEConfigError: an unknown key, or a value that cannot be built from.
        """
        known = [f.name for f in dataclasses.fields(cls)]
        for key in cfg:
            if key not in known:
                raise MoEConfigError(f'{where}: {unknown_name("key", key, known)}')
        if cfg.get('dispatch') == 'dense':
            warnings.warn(
                f"{where}.dispatch='dense' is now 'all'; the old name ends with the next release",
                FutureWarning,
                stacklevel=2,
            )
            cfg = {**cfg, 'dispatch': 'all'}
        settings = cls(**cfg)
        settings.check(where, units)
        return settings

    def check(self, where: str, units: Sequence[str] = UNITS) -> None:
        """Raises MoEConfigError for values that contradict each other or lie outside their range."""
        check_count(where, 'num_experts', self.num_experts)
        check_count(where, 'top_k', self.top_k)
        if self.top_k > self.num_experts:
            raise MoEConfigError(f'{where}.top_k={self.top_k}: expected at most num_experts={self.num_experts}')
        if self.top_k == self.num_experts > 1 and not self.soft_mixture and self.rows_per_expert is None:
            raise MoEConfigError(
                f'{where}: top_k=num_experts={self.top_k} runs every expert for every row, so nothing is chosen and '
                'balance means little. If a soft mixture is meant, add soft_mixture=True'
            )
        if not isinstance(self.shared_expert, bool) and not is_integer(self.shared_expert, 1):
            raise MoEConfigError(
                f'{where}.shared_expert={self.shared_expert!r}: expected True, False or a number of experts >= 1'
            )
        for key in ('soft_mixture', 'copies_share'):
            check_flag(where, key, getattr(self, key))
        if self.noise is not None:
            check_flag(where, 'noise', self.noise)
        check_choice(where, 'unit', self.unit, units)
        check_choice(where, 'balance_over', self.balance_over, BALANCE_OVER)
        check_choice(where, 'dispatch', self.dispatch, DISPATCH_MODES)
        if self.unit == 'patch':
            check_count(where, 'grid', self.grid, minimum=2)
        elif self.grid is not None:
            raise MoEConfigError(f"{where}.grid={self.grid!r}: only unit='patch' takes a grid, unit is {self.unit!r}")
        if not is_number(self.copy_noise, 0):
            raise MoEConfigError(f'{where}.copy_noise={self.copy_noise!r}: expected a number >= 0')
        if not is_number(self.copy_redraw, 0) or self.copy_redraw >= 1:
            raise MoEConfigError(f'{where}.copy_redraw={self.copy_redraw!r}: expected a number >= 0 and < 1')
        if self.copies_share and self.num_experts == 1:
            raise MoEConfigError(f'{where}.copies_share=True: num_experts=1 leaves no copies that could share')
        check_choice(where, 'mixes', self.mixes, MIXES)
        check_choice(where, 'weighting', self.weighting, WEIGHTINGS)
        if self.weighting == STRAIGHT_THROUGH and self.top_k != 1:
            raise MoEConfigError(
                f'{where}.weighting={STRAIGHT_THROUGH!r}: is for top_k=1, top_k is {self.top_k}; use {SOFTMAX!r}'
            )
        if self.mixes == KERNELS and (self.weighting == FULL_SOFTMAX or self.rows_per_expert is not None):
            key = 'weighting' if self.rows_per_expert is None else 'rows_per_expert'
            raise MoEConfigError(
                f'{where}.{key}={getattr(self, key)!r}: mixed kernels need weights that sum to 1; take it or mixes='
                f'{KERNELS!r} out'
            )
        check_rows_per_expert(self, where, units)

    @property
    def sorts(self) -> bool:
        """Whether rows are sorted by the experts that they run."""
        return self.dispatch == 'sorted' and self.mixes == OUTPUTS

    @property
    def experts_run(self) -> float:
        """Experts whose cost a row has, shared ones included.

        K, or 1 where weights are mixed before anything runs, or where experts choose patches the mean over patches.
        """
        run: float = self.top_k if self.mixes == OUTPUTS else 1
        if self.rows_per_expert is not None and self.grid is not None:
            run = min(run, self.num_experts * self.rows_per_expert / self.grid**2)
        return run + int(self.shared_expert)

    def build_router(
        self,
        in_channels: int,
        where: str,
        num_levels: int = 1,
        label: str | None = None,
        key_channels: int | None = None,
        slots: int | None = None,
    ) -> Router | None:
        """Builds gate, constraints and router; None with a single expert (of each slot), which needs no decision.

        Args:
            in_channels: channels of the map that the gate sees.
            where: the config key of these settings, for messages.
            num_levels: levels that one step passes through the layer.
            label: name of the layer in messages and logs; ``where`` by default.
            key_channels: channels of the experts' features, for a gate that decides from them.
            slots: groups of experts of which every row runs one each, ``top_k`` of them; also 1 then means weights
                that are straight through. None for experts without slots.

        Raises:
            MoEConfigError: an unknown gate or constraint, or arguments that they refuse.
        """
        given = () if self.constraint is None else self.constraint
        constraints = given if isinstance(given, (list, tuple)) else [given]
        gate = build_gate(self.gate, f'{where}.gate', in_channels, self.num_experts, key_channels)
        built = [build_named(CONSTRAINTS, c, f'{where}.constraint') for c in constraints]
        if self.num_experts == (slots or 1):
            return None
        if self.mixes == KERNELS and (gate.needs_keys or gate.freezes_experts):
            raise MoEConfigError(
                f'{where}.mixes={KERNELS!r}: {type(gate).__name__} decides from what every expert computed, and here '
                'none computes alone; use another gate'
            )
        try:
            return Router(
                gate,
                built,
                top_k=self.top_k,
                unit=self.unit,
                balance_over=self.balance_over,
                num_levels=num_levels,
                noise=self.noise,
                label=label or where,
                slots=slots or 1,
                weighting=self.weighting if slots is None else STRAIGHT_THROUGH,
                rows_per_expert=self.rows_per_expert,
            )
        except ValueError as error:
            raise MoEConfigError(f'{where}: {error}') from error

    def expert_maker(
        self, make_expert: Callable[[], nn.Module], where: str, in_channels: int, out_channels: int
    ) -> Callable[[], nn.Module]:
        """What builds one expert: ``make_expert``, or the class of the key ``expert``.

        Args:
            make_expert: builds the layer's own expert.
            where: the config key of these settings, for messages.
            in_channels: channels that an expert gets.
            out_channels: channels that it gives.
        """
        own = self.expert
        if own is None:
            return make_expert

        def make() -> nn.Module:
            cfg = own
            if isinstance(cfg, dict) and isinstance(cfg.get('type'), str):
                cls = EXPERTS.get(cfg['type']) or MODELS.get(cfg['type'])
                cfg = {**cfg, 'type': cls or cfg['type']}
            expert = build_named(EXPERTS, cfg, f'{where}.expert', in_channels=in_channels, out_channels=out_channels)
            expert.out_channels = out_channels
            return expert

        return make

    def build_experts(
        self,
        make_expert: Callable[[], nn.Module],
        mixture: Mixture = mix_linear,
        slots: int = 1,
        group: type[ExpertGroup] = ExpertGroup,
    ) -> ExpertGroup:
        """Builds E independently initialised experts, and the shared ones.

        Args:
            make_expert: builds one.
            mixture: how outputs become one, see :mod:`moe_det.routing.mixtures`.
            slots: groups of experts of which every row runs one each.
            group: class of the result.
        """
        several = [make_expert() for _ in range(int(self.shared_expert))]
        shared = SharedExperts(several) if len(several) > 1 else next(iter(several), None)
        experts = [accept_single_values(make_expert()) for _ in range(self.num_experts)]
        share = self.copies_share
        group = KernelMixture if self.mixes == KERNELS else group
        return group(experts, shared, mixture, self.dispatch, slots=slots, common=share, copy_noise=self.copy_noise)


def split_settings(cfg: dict) -> tuple[dict, dict]:
    """Splits a flat config into the keys of :class:`MoESettings` and the rest."""
    names = {f.name for f in dataclasses.fields(MoESettings)}
    ours = {key: value for key, value in cfg.items() if key in names}
    return ours, {key: value for key, value in cfg.items() if key not in names}
