"""A group of experts that share a place in the network."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..errors import CheckpointError, MoEConfigError
from .dispatch import LevelPlan, Mixture, mix_all, mix_chosen, run_dense, run_sorted, touch_idle
from .gates import global_average
from .mixtures import mix_linear
from .routing import Routing
from .rows import RowLayout

if TYPE_CHECKING:
    from .router import Router

DISPATCH_MODES = ('sorted', 'dense')


@dataclass(frozen=True)
class DenseCopy:
    """What a checkpoint of the dense branch gave the experts that replace it.

    Attributes:
        copied: its tensors that every expert got.
        problems: a sentence about each tensor that no expert could take.
    """

    copied: tuple[str, ...]
    problems: tuple[str, ...]


class ExpertGroup(nn.Module):
    """E experts of one place, run on the rows that a routing gives them.

    Args:
        experts: E modules (R, C, H, W) -> (R, C', H', W') of the same shapes.
        shared: an expert that runs on every row and whose output is added (DeepSeekMoE, arXiv 2401.06066).
        mixture: how outputs become one, see :mod:`moe_det.routing.mixtures`.
        dispatch: ``'sorted'`` (cost of K experts) or ``'dense'`` (all experts, for export and compilation).
    """

    def __init__(
        self,
        experts: Sequence[nn.Module],
        shared: nn.Module | None = None,
        mixture: Mixture = mix_linear,
        dispatch: str = 'sorted',
    ) -> None:
        super().__init__()
        self.experts = nn.ModuleList(experts)
        self.shared = shared
        self.mixture = mixture
        self.dispatch = dispatch
        self.frozen_for_distillation = False
        self.dense_copy: DenseCopy | None = None  # set by copy_dense_to_experts
        self._kept: dict[int, tuple[Tensor, Tensor | None]] | None = None  # see keep_outputs

    def __len__(self) -> int:
        return len(self.experts)

    def extra_repr(self) -> str:
        return f'mixture={self.mixture.__name__}, dispatch={self.dispatch!r}'

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
            MoEConfigError: experts of several have synchronised norms, which training would wait for without end.
        """
        if mode and len(self.experts) > 1:
            for name, module in self.experts.named_modules():
                if 'SyncBatchNorm' in type(module).__name__:  # torch's or mmcv's
                    raise MoEConfigError(
                        f"the config's sync_bn has reached experts.{name}: processes whose expert got no rows would "
                        'never join the synchronisation. Take sync_bn out, and freeze the statistics (norm_eval=True) '
                        "or use norm_cfg=dict(type='GN', num_groups=32)"
                    )
        return super().train(mode and not self.frozen_for_distillation)

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
            routing: the decision; None with a single expert, which then is a plain module.
            layout: where the rows lie; None with a single expert.
            plan: per level, from :func:`~moe_det.routing.dispatch.plan_dispatch`; not needed in dense mode.

        Returns:
            L tensors (R_l, C', h'_l, w'_l).
        """
        if routing is None:
            outputs = [self.experts[0](x) for x in rows]
        elif self._kept is not None:
            outputs = self._mix_kept(rows, routing, layout)
        elif self.dispatch == 'dense':
            outputs = self._run_dense(rows, routing, layout)
        else:
            outputs = self._run_sorted(rows, routing, layout, plan)
        return self._with_shared(outputs, rows)

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
        outputs, keys = zip(*(self._run_all(x, level, with_keys=True) for level, x in enumerate(rows)), strict=True)
        routing = router(gate_rows, layout, keys)
        first, mixed = 0, []
        for of_level in outputs:
            mixed.append(mix_all(of_level, routing, first, self.mixture))
            if layout.unit != 'image':
                first += of_level.shape[0]
        return self._with_shared(mixed, rows)

    def _run_all(self, rows: Tensor, level: int, with_keys: bool = False) -> tuple[Tensor, Tensor | None]:
        """Outputs of every expert on every row, (R_l, E, C', H', W'), and an attentive gate's keys, (R_l, E, C'')."""
        kept = self._kept
        if kept is not None and level in kept and not (with_keys and kept[level][1] is None):
            return kept[level]
        outputs, keys = [], []
        for expert in self.experts:
            if with_keys and getattr(expert, 'gives_features', False):
                output, features = expert(rows, with_features=True)
            else:
                output = features = expert(rows)
            outputs.append(output)
            keys.append(global_average(features) if with_keys else None)
        both = torch.stack(outputs, dim=1), torch.stack(keys, dim=1) if with_keys else None
        if kept is not None:
            kept[level] = both
        return both

    def _mix_kept(self, rows: Sequence[Tensor], routing: Routing, layout: RowLayout) -> list[Tensor]:
        first, mixed = 0, []
        for level, x in enumerate(rows):
            outputs, _ = self._run_all(x, level)
            mixed.append(mix_chosen(outputs, routing, first, self.mixture))
            if layout.unit != 'image':
                first += x.shape[0]
        return mixed

    def _with_shared(self, outputs: list[Tensor], rows: Sequence[Tensor]) -> list[Tensor]:
        if self.shared is None:
            return outputs
        return [y + self.shared(x) for y, x in zip(outputs, rows, strict=True)]

    def _run_sorted(
        self, rows: Sequence[Tensor], routing: Routing, layout: RowLayout, plan: Sequence[LevelPlan]
    ) -> list[Tensor]:
        plans = [plan[0]] * len(rows) if layout.unit == 'image' else plan
        outputs = [
            run_sorted(x, routing, level, self.experts, self.mixture) for x, level in zip(rows, plans, strict=True)
        ]
        if self.training:
            used = {expert for level in plans for expert in level.active}
            idle = [expert for i, expert in enumerate(self.experts) if i not in used]
            outputs[-1] = touch_idle(outputs[-1], idle)
        return outputs

    def _run_dense(self, rows: Sequence[Tensor], routing: Routing, layout: RowLayout) -> list[Tensor]:
        first, outputs = 0, []
        for x in rows:
            outputs.append(run_dense(x, routing, first, self.experts, self.mixture))
            if layout.unit != 'image':
                first += x.shape[0]
        return outputs

    def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs) -> None:
        pattern = re.compile(re.escape(prefix) + r'experts\.(\d+)\.')
        stored = {int(match[1]) for key in state_dict if (match := pattern.match(key))}
        if stored and len(stored) != len(self.experts):
            raise CheckpointError(
                f'the checkpoint has num_experts={len(stored)} at {prefix.rstrip(".")}, the config '
                f'num_experts={len(self.experts)}: change the config to match'
            )
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


@contextmanager
def keep_outputs(groups: Sequence[ExpertGroup]) -> Iterator[None]:
    """Runs every expert once: inside, later calls of the groups mix what their experts gave the first time.

    For evaluating one batch under many routings: E experts run once instead of K for each routing. Inside, every call
    of a group must bring the same rows; sizes are not compared. Needs room for E outputs.

    Args:
        groups: groups whose rows no routing changes.
    """
    for group in groups:
        group._kept = {}
    try:
        yield
    finally:
        for group in groups:
            group._kept = None


def copy_dense_to_experts(
    state_dict: dict[str, Tensor], dense: dict[str, str], experts: ExpertGroup, prefix: str, noise: float
) -> list[str]:
    """Rewrites a state dict in place so that every expert starts from the dense branch it replaces.

    Each expert's floating-point parameters get independent noise of ``noise`` times the parameter's own standard
    deviation, because identical experts would stay identical under equal routing. Buffers are copied as they are.
    The noise is a function of the weights that the experts had before, not of the random generators: data-parallel
    wrappers make processes agree on weights before a checkpoint is loaded, on generators (mmengine's
    ``diff_rank_seed``) nobody does, and nothing sends the copies to the other processes afterwards.

    Args:
        state_dict: holds the dense tensors; they are replaced by one set per expert.
        dense: dense key -> name of the parameter inside an expert.
        experts: the group to fill.
        prefix: prefix of the group in the state dict, ending in ``experts.``.
        noise: relative standard deviation of the noise, >= 0.

    Returns:
        Sentences about tensors that could not be copied; the experts keep their own initial values there. The group
        remembers them as ``dense_copy``.
    """
    parameters = dict(experts.experts[0].named_parameters())
    own = dict(experts.experts[0].state_dict())
    generator = _generator_of(experts)
    copied, problems = [], []
    for key, name in dense.items():
        value = state_dict.pop(key)
        if name not in own:
            problems.append(f'{key}: an expert has no {name}')
            continue
        if own[name].shape != value.shape:
            problems.append(f'{key}: shape {tuple(value.shape)}, an expert has {tuple(own[name].shape)}')
            continue
        deviation = value.float().std().item() if name in parameters and value.numel() > 1 else 0.0
        for expert in range(len(experts)):
            copy = value.clone()
            if noise and deviation:
                drawn = torch.randn(copy.shape, generator=generator)
                copy += noise * deviation * drawn.to(copy)
            state_dict[f'{prefix}{expert}.{name}'] = copy
        copied.append(key)
    experts.dense_copy = DenseCopy(tuple(copied), tuple(problems))
    return problems


def _generator_of(experts: ExpertGroup) -> torch.Generator:
    """A generator seeded by the first expert's weights."""
    digest = hashlib.blake2b(digest_size=7)
    for parameter in experts.experts[0].parameters():
        digest.update(parameter.detach().cpu().float().numpy().tobytes())
    return torch.Generator().manual_seed(int.from_bytes(digest.digest(), 'little'))
