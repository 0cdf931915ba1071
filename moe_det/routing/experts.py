"""A group of experts that share a place in the network."""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..errors import CheckpointError, MoEConfigError
from .dense_copies import DenseCopy, copy_dense_to_experts
from .dispatch import Experts, LevelPlan, Mixture, mix_all, run_sorted, run_unsorted, touch_idle
from .gates import global_average
from .mixtures import mix_linear
from .routing import Routing
from .rows import RowLayout
from .shared_copies import SummedExpert, WholeExperts, common_parts, fit_stored_form, fold_group, start_common
from .shared_experts import SharedExperts

if TYPE_CHECKING:
    from .router import Router

__all__ = ['DISPATCH_MODES', 'DenseCopy', 'ExpertGroup', 'copy_dense_to_experts', 'fold_common']

DISPATCH_MODES = ('sorted', 'all')


class ExpertGroup(nn.Module):
    """E experts of one place, run on the rows that a routing gives them.

    Args:
        experts: E modules (R, C, H, W) -> (R, C', H', W') of the same shapes.
        shared: an expert, or :class:`~moe_det.routing.shared_experts.SharedExperts`, that runs on every row and whose
            output is added (DeepSeekMoE, arXiv 2401.06066).
        mixture: how outputs become one, see :mod:`moe_det.routing.mixtures`.
        dispatch: ``'sorted'`` (cost of K experts) or ``'all'`` (all experts run, for export and compilation).
        slots: groups of experts of which every row runs one each; see :mod:`moe_det.routing.selection`.
        common: whether experts hold differences from a common part, see :mod:`moe_det.routing.shared_copies`. It
            starts at 0: call :meth:`start_common` when the experts are initialised, or do so in :meth:`starting`.
        copy_noise: relative size of the differences with which a common part starts.
    """

    def __init__(
        self,
        experts: Sequence[nn.Module],
        shared: nn.Module | None = None,
        mixture: Mixture = mix_linear,
        dispatch: str = 'sorted',
        slots: int = 1,
        common: bool = False,
        copy_noise: float = 0.02,
    ) -> None:
        super().__init__()
        self.experts = nn.ModuleList(experts)
        self.slots = slots
        self.common = common_parts(experts, slots) if common else None
        self.copy_noise = copy_noise
        self.shared = shared
        self.mixture = mixture
        self.dispatch = dispatch
        self.frozen_for_distillation = False
        self.dense_copy: DenseCopy | None = None  # set by copy_dense_to_experts

    cut = False  # whether experts are slices of a dense module, and the shared one is another slice
    holds_whole = False  # whether experts hold whole weights for now, although the group has a common part
    pool = staticmethod(global_average)  # (R, C, ...) features of an expert -> (R, C) key of an attentive gate

    def __len__(self) -> int:
        return len(self.experts)

    def extra_repr(self) -> str:
        slots = f', slots={self.slots}' if self.slots > 1 else ''
        return f'mixture={self.mixture.__name__}, dispatch={self.dispatch!r}{slots}'

    @property
    def copies(self) -> int:
        """Experts of each slot."""
        return len(self.experts) // self.slots

    @property
    def shared_experts(self) -> list[nn.Module]:
        """Those that run on every row."""
        if isinstance(self.shared, SharedExperts):
            return list(self.shared)
        return [] if self.shared is None else [self.shared]

    @property
    def every_expert(self) -> list[Any]:
        """The experts, then the shared ones."""
        return [*self.experts, *self.shared_experts]

    @property
    def slices(self) -> int:
        """Parts that a dense module is cut into for its experts; 1 where each takes the place of all of it."""
        return self.slots + (self.cut and self.shared is not None)

    # -- common part -------------------------------------------------------------------------------------------

    def weights_of(self, expert: int) -> dict[str, Tensor]:
        """The weights that an expert computes with, by name: its parameters, plus the common part where there is one.

        With gradient; a sum is recomputed in each call.
        """
        weights: dict[str, Tensor] = dict(self.experts[expert].named_parameters())
        if self.common is None:
            return weights
        common = self.common[expert // self.copies]
        return {name: common.get_parameter(name) + difference for name, difference in weights.items()}

    def runnable(self) -> Experts:
        """E callables that run the experts as they are; call it again in each forward."""
        if self.common is None:
            return list(self.experts)
        return [SummedExpert(self, expert) for expert in range(len(self))]

    def start_common(self) -> None:
        """After initialisation: the first expert of each slot becomes the common part, the others its copies.

        Their differences are noise of ``copy_noise``. Does nothing where experts have no common part, and leaves it to
        :meth:`starting` inside of that.
        """
        if self.common is not None and not self.holds_whole:
            start_common(self)

    def starting(self) -> contextlib.AbstractContextManager:
        """The context for initialisers: experts hold whole weights, and :meth:`start_common` follows if these change.

        What a checkpoint brings that is loaded inside stays.
        """
        return contextlib.nullcontext() if self.common is None or self.holds_whole else WholeExperts(self)

    def fold_common(self) -> None:
        """Makes the experts plain ones, in place; outputs stay the same."""
        if self.common is not None:
            fold_group(self)

    # -- modes and forward -------------------------------------------------------------------------------------

    def freeze(self) -> None:
        """Keeps the experts as they are, norms included, while a gate is fitted to them."""
        self.frozen_for_distillation = True
        self.requires_grad_(False)
        self.eval()

    def unfreeze(self) -> None:
        """Undoes :meth:`freeze`; the next ``train()`` reaches the experts again."""
        self.frozen_for_distillation = False
        self.requires_grad_(True)

    def train(self, mode: bool = True) -> ExpertGroup:
        """Sets the mode, as of any module; frozen experts stay in evaluation.

        Raises:
            MoEConfigError: experts of several that are trained have synchronised norms, which training would wait for
                without end.
        """
        mode = mode and not self.frozen_for_distillation
        if mode and len(self.experts) > 1:
            for name, module in self.experts.named_modules():
                if 'SyncBatchNorm' in type(module).__name__:  # torch's or mmcv's
                    raise MoEConfigError(
                        f"the config's sync_bn has reached experts.{name}: processes whose expert got no rows would "
                        'never join the synchronisation. Take sync_bn out, and freeze the statistics (norm_eval=True) '
                        "or use norm_cfg=dict(type='GN', num_groups=32)"
                    )
        return super().train(mode)

    def forward(
        self,
        rows: Sequence[Tensor],
        routing: Routing | None,
        layout: RowLayout | None,
        plan: Sequence[LevelPlan] | None = None,
    ) -> list[Tensor]:
        """Runs the experts on the rows of each level.

        Args:
            rows: L tensors (R_l, C, h_l, w_l).
            routing: the decision; None with a single expert (of each slot), which then is a plain module.
            layout: where the rows lie; None without a decision.
            plan: per level, from :func:`~moe_det.routing.dispatch.plan_dispatch`; not needed with ``dispatch='all'``.

        Returns:
            L tensors (R_l, C', h'_l, w'_l).
        """
        if routing is None:
            experts = self.runnable()
            outputs = [functools.reduce(torch.add, [expert(x) for expert in experts]) for x in rows]
            return self.with_shared(outputs, rows)
        assert layout is not None  # comes with a decision
        if self.dispatch == 'all':
            return self.with_shared(self.run_unsorted(rows, routing, layout), rows)
        assert plan is not None  # needed by sorted dispatch
        return self.with_shared(self.run_sorted(rows, routing, layout, plan), rows)

    def run_and_route(
        self, rows: Sequence[Tensor], router: Router, gate_rows: Sequence[Tensor], layout: RowLayout
    ) -> list[Tensor]:
        """Runs every expert on every row, then lets the gate decide from what they computed.

        An expert with ``gives_features`` is called with ``with_features=True`` and returns its output and the features
        that the gate sees; of any other expert it sees the output.

        Args:
            rows: L tensors (R_l, C, h_l, w_l) for the experts.
            router: of a gate that needs the experts' features.
            gate_rows: L tensors of the same rows for the gate.
            layout: where the rows lie.

        Returns:
            L tensors (R_l, C', h'_l, w'_l).
        """
        outputs, keys = self.run_all(rows)
        routing = router(gate_rows, layout, keys)
        first, mixed = 0, []
        for of_level in outputs:
            mixed.append(mix_all(of_level, routing, first, self.mixture))
            if layout.unit != 'image':
                first += of_level.shape[0]
        return self.with_shared(mixed, rows)

    def run_all(self, rows: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Runs every expert on every row.

        Args:
            rows: L tensors (R_l, C, h_l, w_l).

        Returns:
            Per level the outputs (R_l, E, C', h'_l, w'_l), and the keys (R_l, E, C'') that an attentive gate sees.
        """
        experts, outputs, keys = self.runnable(), [], []
        for x in rows:
            found = [_with_features(expert, x) for expert in experts]
            outputs.append(torch.stack([output for output, _ in found], dim=1))
            keys.append(torch.stack([self.pool(features) for _, features in found], dim=1))
        return outputs, keys

    def with_shared(self, outputs: list[Tensor], rows: Sequence[Tensor]) -> list[Tensor]:
        """Adds what the shared expert gives, where there is one, to the outputs of each level."""
        if self.shared is None:
            return outputs
        return [y + self.shared(x) for y, x in zip(outputs, rows, strict=True)]

    def run_sorted(
        self, rows: Sequence[Tensor], routing: Routing, layout: RowLayout, plan: Sequence[LevelPlan]
    ) -> list[Tensor]:
        plans = [plan[0]] * len(rows) if layout.unit == 'image' else plan
        experts = self.runnable()
        outputs = [run_sorted(x, routing, level, experts, self.mixture) for x, level in zip(rows, plans, strict=True)]
        return self._with_idle(outputs, plans)

    def _with_idle(self, outputs: list[Tensor], plans: Sequence[LevelPlan]) -> list[Tensor]:
        """In training, makes what no row of any level used part of the graph, with a zero gradient."""
        if not self.training:
            return outputs
        used = {expert for level in plans for expert in level.active}
        idle = [expert for i, expert in enumerate(self.experts) if i not in used]
        if self.common is not None:
            slots = {expert // self.copies for expert in used}
            idle += [common for i, common in enumerate(self.common) if i not in slots]
        return [*outputs[:-1], touch_idle(outputs[-1], idle)]

    def run_unsorted(self, rows: Sequence[Tensor], routing: Routing, layout: RowLayout) -> list[Tensor]:
        experts = self.runnable()
        first, outputs = 0, []
        for x in rows:
            outputs.append(run_unsorted(x, routing, first, experts, self.mixture))
            if layout.unit != 'image':
                first += x.shape[0]
        return outputs

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        pattern = re.compile(re.escape(prefix) + r'experts\.(\d+)\.')
        stored = {int(match[1]) for key in state_dict if (match := pattern.match(key))}
        if stored and len(stored) != len(self.experts):
            path, copies = prefix.rstrip('.'), f'shards={self.slots} of copies={self.copies}'
            raise CheckpointError(
                f'the checkpoint has num_experts={len(stored)} at {path}, the config '
                + (f'num_experts={len(self.experts)}' if self.slots == 1 else copies)
                + ': change the config to match'
            )
        fit_stored_form(state_dict, prefix, self)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def _with_features(expert: Callable[..., Any], x: Tensor) -> tuple[Tensor, Tensor]:
    """An expert's output, and the features that a gate sees of it: its own where it gives them, else the output."""
    if getattr(expert, 'gives_features', False):
        return expert(x, with_features=True)
    output = expert(x)
    return output, output


def fold_common(model: nn.Module) -> nn.Module:
    """Makes the experts of every group with a common part plain ones, in place; outputs stay the same.

    Returns:
        The model.
    """
    for module in model.modules():
        if isinstance(module, ExpertGroup):
            module.fold_common()
    return model
