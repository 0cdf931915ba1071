"""Losses by which the experts of a RetinaNet head learn from each other.

Shape letters: N images, A anchors of a position, R rows, K chosen experts, C channels of the towers' features.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..checks import checked_number
from ..errors import MoEConfigError, unknown_name
from ..layers.settings import MoESettings
from ..routing.kernel_mixture import OUTPUTS

Heads = tuple[Sequence[Tensor], Sequence[Tensor]]  # class logits and box deltas, a (N, A x, H, W) tensor per level


class Distillation:
    """Base of the losses: a factor, and the positions that count.

    A position counts if one of its anchors is positive, or if it is a hard negative: of the positions with negative
    anchors alone those with the highest class score, ``negatives`` times as many as there are positive positions in the
    batch. The number is our own choice.

    Args:
        weight: factor of the loss, >= 0.
        negatives: hard negative positions for each positive one, >= 0.
    """

    key = ''  # of the losses

    def __init__(self, weight: float, negatives: float = 1.0) -> None:
        self.weight = checked_number('weight', weight)
        self.negatives = checked_number('negatives', negatives)
        self._targets: tuple[list[Tensor], list[Tensor]] | None = None

    def note_pyramid(self, pyramid: Sequence[Tensor]) -> None:
        """Takes what a training forward of the head gets."""

    def note_targets(self, labels: list[Tensor], weights: list[Tensor]) -> None:
        """Takes the targets of the class branch; see :meth:`positions`."""
        self._targets = labels, weights

    def losses_of(self, head: Any, outputs: Heads) -> dict[str, Tensor]:
        """``loss_moe_<key>_<branch>`` of a head's branches with experts.

        Args:
            head: a :class:`~moe_det.models.moe_retina_head.MoERetinaHead`.
            outputs: of its forward.
        """
        assert self._targets is not None  # of this step
        counted, positive = self.positions(*self._targets, outputs[0], head.num_classes)
        self._targets = None
        found = self.by_branch(head, outputs, counted, positive)
        return {f'loss_moe_{self.key}_{branch}': found[branch] for branch in head.moe.branches}

    def by_branch(
        self, head: Any, outputs: Heads, counted: Sequence[Tensor], positive: Sequence[Tensor]
    ) -> dict[str, Tensor]:
        """The losses by branch."""
        raise NotImplementedError(f'{type(self).__name__} does not define by_branch()')

    def positions(
        self, labels: Sequence[Tensor], weights: Sequence[Tensor], cls_scores: Sequence[Tensor], classes: int
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Per level (N, H, W), whether a position counts, and whether it is positive.

        Args:
            labels: per level (N, H W A) class of each anchor, ``classes`` for background.
            weights: per level (N, H W A), 0 for anchors that are ignored.
            cls_scores: per level (N, A classes, H, W) logits.
            classes: of the head.
        """
        positive, negative, scores = [], [], []
        for label, weight, score in zip(labels, weights, cls_scores, strict=True):
            size = (len(score), *score.shape[2:], -1)
            label, used = label.view(size), weight.view(size) > 0
            positive.append(((label < classes) & used).any(3))
            negative.append(((label == classes) & used).any(3) & ~positive[-1])
            scores.append(score.detach().amax(1).float())
        wanted = self.negatives * sum(one.sum() for one in positive)
        joined = torch.cat([s.masked_fill(~n, float('-inf')).flatten() for s, n in zip(scores, negative, strict=True)])
        rank = torch.empty_like(joined, dtype=torch.long)
        order = torch.sort(joined, descending=True, stable=True).indices
        rank[order] = torch.arange(len(joined), device=joined.device)
        hard = (rank < wanted).split([one.numel() for one in positive])
        counted = [p | (n & h.view(p.shape)) for p, n, h in zip(positive, negative, hard, strict=True)]
        return counted, positive


class MutualDistillation(Distillation):
    """Moderate mutual distillation: the chosen experts of a row are drawn to the mean of the others (MoDE).

    L = weight * mean over positions of 1/K sum_k ||f_k - stopgrad(mean_{j != k} f_j)||^2 / C, with f the features of
    the experts' towers, before the predictor. A row with fewer than two experts has no loss.

    Source: the idea of arXiv 2402.00893, which gives neither its form for more than two experts nor its weight; that it
    acts on features, at these positions, is our own choice. It opposes specialisation as the weight grows.

    Args:
        weight: factor of the loss, >= 0; the values to try are our own choice too: 0.01, 0.1 and 1.
        negatives: see the base.
    """

    key = 'mutual'

    def __init__(self, weight: float = 0.01, negatives: float = 1.0) -> None:
        super().__init__(weight, negatives)

    def by_branch(
        self, head: Any, outputs: Heads, counted: Sequence[Tensor], positive: Sequence[Tensor]
    ) -> dict[str, Tensor]:
        grid = head.settings.grid if head.settings.unit == 'patch' else None
        groups = {branch: head.branch_experts[branch] for branch in head.moe.branches}
        return {branch: self.loss(group.distances(counted, grid), counted) for branch, group in groups.items()}

    def loss(self, distances: Sequence[Tensor], counted: Sequence[Tensor]) -> Tensor:
        """The loss of a branch.

        Args:
            distances: per level (N, H, W), of :func:`~moe_det.models.expert_features.mutual_distance`.
            counted: per level (N, H, W), the positions that count.
        """
        total = torch.stack([(d * c).sum() for d, c in zip(distances, counted, strict=True)]).sum()
        return self.weight * total / torch.stack([c.sum() for c in counted]).sum().clamp_min(1)


class DenseTeacher(Distillation):
    """A teacher that mixes all experts with averaged weights, from whose outputs the sparse mixture learns.

    The teacher is the head with the exponential moving averages of its weights, which ``DenseTeacherHook`` keeps, and
    with every expert mixed; it runs without gradient, at the cost of E experts, on the pyramid that the head gets.
    Class branch: mean over positions of the mean over anchors and classes of KL(sigmoid(teacher) || sigmoid(student)).
    Box branch: over positive positions the mean squared difference of the deltas.

    Source: the ensemble teacher of a sparse mixture is known from sparse upcycling; this form of it, its positions and
    its weight are our own choice.

    Args:
        weight: factor of the losses, >= 0.
        negatives: see the base.

    Attributes:
        teach: pyramid -> the teacher's class logits and box deltas; the hook sets it.
    """

    key = 'teacher'

    def __init__(self, weight: float = 1.0, negatives: float = 1.0) -> None:
        super().__init__(weight, negatives)
        self.teach: Callable[[Sequence[Tensor]], Heads] | None = None
        self._pyramid: list[Tensor] = []

    def note_pyramid(self, pyramid: Sequence[Tensor]) -> None:
        self._pyramid = [level.detach() for level in pyramid]

    def by_branch(
        self, head: Any, outputs: Heads, counted: Sequence[Tensor], positive: Sequence[Tensor]
    ) -> dict[str, Tensor]:
        pyramid, self._pyramid = self._pyramid, []
        return self.losses(pyramid, outputs, counted, positive)

    def losses(
        self, pyramid: Sequence[Tensor], student: Heads, counted: Sequence[Tensor], positive: Sequence[Tensor]
    ) -> dict[str, Tensor]:
        """The losses by branch, ``cls`` and ``reg``.

        Raises:
            MoEConfigError: there is no teacher.
        """
        if self.teach is None:
            raise MoEConfigError(
                "bbox_head.moe.distillation: DenseTeacher has no teacher: add dict(type='DenseTeacherHook') to "
                'custom_hooks'
            )
        teacher = self.teach(pyramid)
        return {
            'cls': self._mean(_sigmoid_divergence, student[0], teacher[0], counted),
            'reg': self._mean(lambda s, t: (s - t).square(), student[1], teacher[1], positive),
        }

    def _mean(
        self,
        difference: Callable[[Tensor, Tensor], Tensor],
        student: Sequence[Tensor],
        teacher: Sequence[Tensor],
        positions: Sequence[Tensor],
    ) -> Tensor:
        per_level = [
            (difference(s.float(), t.float()).mean(1) * p).sum()
            for s, t, p in zip(student, teacher, positions, strict=True)
        ]
        return self.weight * torch.stack(per_level).sum() / torch.stack([p.sum() for p in positions]).sum().clamp_min(1)


def _sigmoid_divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """KL of two Bernoulli distributions, from their logits."""
    probability = teacher.sigmoid()
    cross = F.binary_cross_entropy_with_logits(student, probability, reduction='none')
    return cross - F.binary_cross_entropy_with_logits(teacher, probability, reduction='none')


KINDS: dict[str, type[MutualDistillation] | type[DenseTeacher]] = {
    'MutualDistillation': MutualDistillation,
    'DenseTeacher': DenseTeacher,
}


def build_distillation(
    cfg: dict | None, settings: MoESettings, placement: str, where: str
) -> MutualDistillation | DenseTeacher | None:
    """Builds the key ``distillation`` of a head; None without it.

    Raises:
        MoEConfigError: an unknown type or argument, or experts that cannot learn from each other.
    """
    if cfg is None:
        return None
    if not isinstance(cfg, dict) or cfg.get('type') not in KINDS:
        name = cfg.get('type') if isinstance(cfg, dict) else cfg
        raise MoEConfigError(f'{where}.distillation: {unknown_name("type", name, KINDS)}')
    arguments = dict(cfg)
    kind = arguments.pop('type')
    try:
        built = KINDS[kind](**arguments)
    except (TypeError, ValueError) as error:
        raise MoEConfigError(f'{where}.distillation: {kind}: {error}') from error
    mutual = isinstance(built, MutualDistillation)
    for wrong, message in (
        (mutual and settings.top_k < 2, f'top_k={settings.top_k}: {kind} needs two experts of a row; set top_k >= 2'),
        (settings.num_experts < 2, f'num_experts={settings.num_experts}: {kind} needs two experts'),
        (settings.mixes != OUTPUTS, f'mixes={settings.mixes!r}: {kind} needs mixes={OUTPUTS!r}'),
        (
            placement not in ('branch', 'tower'),
            f"placement={placement!r}: {kind} is for the placements 'branch' and 'tower'",
        ),
        (mutual and settings.expert is not None, f"expert: {kind} needs the features of the head's own experts"),
    ):
        if wrong:
            raise MoEConfigError(f'{where}.{message}')
    return built
