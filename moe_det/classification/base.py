"""What the image classifiers of both papers share: batches, losses, predictions."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from mmengine.model import BaseModel
from torch import Tensor

from ..checks import check_count
from ..errors import MoEConfigError
from ..routing.collection import collect_losses
from ..routing.intervention import Intervention
from ..routing.records import Recorder
from ..routing.router import find_routers
from ..routing.routing import Routing
from .preprocessor import ClassificationPreprocessor

MODES = ('tensor', 'loss', 'predict')


class MoEClassifier(BaseModel):
    """Base of the image classifiers with experts.

    A batch is ``dict(inputs=(N, C, H, W), labels=(N,))``, as
    :class:`~moe_det.classification.dataset.ClassificationDataset` gives it. A subclass defines :meth:`classify`, and
    also :meth:`task_loss` where its loss is not the cross entropy, and :meth:`classify_with_experts` where its
    experts are classifiers of their own. It may hold any number of :class:`~moe_det.routing.router.Router`; with
    :func:`choose_in_evaluation` at the end of its ``__init__`` tools know ``test_top_k`` before the first forward.

    - ``mode='tensor'`` returns the scores (N, K), whose softmax over the classes is the class probabilities.
    - ``mode='loss'`` returns ``loss_cls`` (or what :meth:`task_loss` gives), the routers' auxiliary losses
      ``loss_moe_<constraint>``, and ``error``, the share of wrong answers in the batch, which is not a loss. The model
      collects its routers itself, with or without ``MoEHook``.
    - ``mode='predict'`` returns a list with one dict for the whole batch: ``probs`` (N, K) class probabilities;
      ``labels`` (N,) or None; ``gates``, by layer, (N, E) gate probabilities (the layers that decide once per image);
      ``expert_classes``, by layer, (N,) the class that the expert with the largest gate probability predicts, where
      experts are classifiers. One dict, because a list of 10,000 costs more than the forward pass;
      :class:`~moe_det.classification.metric.ClassificationMetric` reads it.

    Args:
        num_classes: K.
        data_preprocessor: normalises the inputs; None takes ``ClassificationPreprocessor`` without mean and std.
        test_top_k: number of experts in evaluation, in every layer; None takes the trained one.
        init_cfg: mmengine's initialisation.

    Raises:
        MoEConfigError: ``num_classes`` below 2, or ``test_top_k`` below 1.
    """

    def __init__(
        self,
        num_classes: int,
        data_preprocessor: dict | None = None,
        test_top_k: int | None = None,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(
            ClassificationPreprocessor() if data_preprocessor is None else data_preprocessor, init_cfg=init_cfg
        )
        for key, value, minimum in (('num_classes', num_classes, 2), ('test_top_k', test_top_k, 1)):
            if value is not None:
                check_count('model', key, value, minimum)
        self.num_classes = num_classes
        self.test_top_k = test_top_k

    # -- what a subclass defines -------------------------------------------------------------------------------

    def classify(self, inputs: Tensor) -> Tensor:
        """(N, C, H, W) normalised images -> (N, K) scores; their softmax is the class probabilities."""
        raise NotImplementedError(f'{type(self).__name__} does not define classify()')

    def task_loss(self, inputs: Tensor, labels: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Losses of the task by name, and the scores (N, K) they were computed from."""
        scores = self.classify(inputs)
        return {'loss_cls': F.cross_entropy(scores, labels)}, scores

    def classify_with_experts(self, inputs: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Scores (N, K) and, by layer, the class (N,) that the expert with the largest gate probability predicts."""
        return self.classify(inputs), {}

    # -- mmengine's interface ----------------------------------------------------------------------------------

    def forward(
        self, inputs: Tensor, labels: Tensor | None = None, mode: str = 'tensor'
    ) -> Tensor | dict[str, Tensor] | list[dict]:
        """See the class.

        Args:
            inputs: (N, C, H, W) normalised images.
            labels: (N,) classes from 0 to K - 1.
            mode: ``'tensor'``, ``'loss'`` or ``'predict'``.

        Raises:
            ValueError: an unknown mode, or a loss without labels.
        """
        if mode not in MODES:
            raise ValueError(f'mode={mode!r}: expected one of {", ".join(MODES)}')
        choose_in_evaluation(self, self.test_top_k)  # of a subclass that did not when its layers were there
        if mode == 'tensor':
            return self.classify(inputs)
        if mode == 'predict':
            return self.predict(inputs, labels)
        if labels is None:
            raise ValueError("mode='loss' needs the labels of the images")
        return self.loss(inputs, labels)

    def loss(self, inputs: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Losses of a batch; see the class."""
        routers = list(find_routers(self).values())
        for router in routers:
            router.start_step()
            if self.training:
                router.supply('inputs', inputs)
        losses, scores = self.task_loss(inputs, labels)
        losses = {**losses, **collect_losses(routers)}
        losses['error'] = (scores.detach().argmax(1) != labels).float().mean()
        return losses

    def predict(self, inputs: Tensor, labels: Tensor | None = None) -> list[dict]:
        """Predictions of a batch; see the class."""
        with GateProbabilities(self) as gates:
            scores, expert_classes = self.classify_with_experts(inputs)
        return [dict(probs=scores.float().softmax(1), labels=labels, gates=gates.found, expert_classes=expert_classes)]


def choose_in_evaluation(model: torch.nn.Module, top_k: int | None) -> None:
    """Makes ``test_top_k`` the choice of all layers in evaluation, where nobody intervenes.

    Args:
        model: a model with MoE layers.
        top_k: number of experts in evaluation, in every layer; None takes the trained one.

    Raises:
        MoEConfigError: a layer has fewer experts, or slots.
    """
    choice = None if top_k is None else Intervention(top_k=top_k)
    for name, router in find_routers(model).items():
        if choice is not None:
            try:
                choice.check(name, router.num_experts, router.slots)
            except ValueError as error:
                raise MoEConfigError(f'model.test_top_k, layer {error}') from error
        router.in_evaluation = choice


class GateProbabilities(Recorder):
    """Collects the gate probabilities of the layers that decide once per image.

    Args:
        model: a model whose routers are called while inside, each once.

    Attributes:
        found: (N, E) by layer path, filled as the layers decide.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__(model)
        self.found: dict[str, Tensor] = {}

    def receive(self, layer: str, routing: Routing, layout) -> None:
        if layout.unit != 'patch':
            self.found[layer] = routing.probs
