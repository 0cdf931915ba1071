"""Error and task decomposition of a classifier over its whole test set."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from mmengine.dist import all_gather_object
from mmengine.evaluator import BaseMetric
from mmengine.logging import MMLogger
from torch import Tensor

from ..checks import is_integer
from ..errors import DataError, MoEConfigError
from .decomposition import Decomposition, DecompositionMeter
from .expert_classes import expert_class_text


class ClassificationMetric(BaseMetric):
    """``error``, and of a model with experts ``I_EY``, ``H_s`` and ``H_u`` in bits (arXiv 2302.14703).

    All are over the whole test set, in a distributed run over that of all processes (the published H_u is that of the
    last batch). E is the expert with the largest gate probability, Y the class that this expert predicts; where experts
    are not classifiers, the class that the model predicts. With several MoE layers the names end in the layer's,
    ``I_EY/backbone.layer4``. The log also gets the table of samples by expert and class, which ``ClassificationHook``
    draws.

    Args:
        top_errors: further ranks for which the error is given: 5 adds ``top5_error``.
        collect_device: of ``BaseMetric``; unused, only sums are exchanged.
        prefix: put before the names, with a slash.

    Attributes:
        decompositions: by layer, of the last evaluation, in the main process and in all others.

    Raises:
        MoEConfigError: a rank that is not an integer above 1.
    """

    default_prefix = ''

    def __init__(
        self,
        top_errors: Sequence[int] = (),
        collect_device: str = 'cpu',
        prefix: str | None = None,
    ) -> None:
        super().__init__(collect_device, prefix)
        for rank in top_errors:
            if not is_integer(rank, 2):
                raise MoEConfigError(f'test_evaluator.top_errors={tuple(top_errors)!r}: expected integers above 1')
        self.top_errors = tuple(top_errors)
        self.decompositions: dict[str, Decomposition] = {}
        self._forget()

    def _forget(self) -> None:
        self._samples = 0
        self._wrong = dict.fromkeys((1, *self.top_errors), 0)
        self._meters: dict[str, DecompositionMeter] = {}

    def process(self, data_batch: dict, data_samples: Sequence[dict]) -> None:
        """Adds a batch.

        Args:
            data_batch: holds the labels where the predictions do not.
            data_samples: what ``MoEClassifier`` predicts.

        Raises:
            ValueError: there are no labels, or a label lies outside the model's classes.
        """
        for prediction in data_samples:
            labels = prediction['labels'] if prediction.get('labels') is not None else data_batch.get('labels')
            if labels is None:
                raise ValueError('the batch has no labels')
            self._add(prediction, labels.to(prediction['probs'].device))

    def _add(self, prediction: dict, labels: Tensor) -> None:
        probs = prediction['probs']
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < probs.shape[1]:
            raise ValueError(
                f'labels from {int(labels.min())} to {int(labels.max())}, the model has {probs.shape[1]} classes'
            )
        ranked = probs.topk(min(max(self._wrong), probs.shape[1]), dim=1).indices
        hit = ranked == labels[:, None]
        self._samples += len(labels)
        for rank in self._wrong:
            self._wrong[rank] += int((~hit[:, :rank].any(1)).sum())
        predicted = ranked[:, 0]
        for layer, gate in prediction['gates'].items():
            if layer not in self._meters:
                self._meters[layer] = DecompositionMeter(gate.shape[1], probs.shape[1])
            by_expert = prediction['expert_classes'].get(layer, predicted)
            self._meters[layer].update(gate, predicted, by_expert, labels)

    def evaluate(self, size: int) -> dict[str, float]:
        """Joins the processes' counts and returns the numbers.

        Args:
            size: images of the test set.

        Raises:
            MoEConfigError: images were left out or counted twice.
            DataError: fewer images than experts.
        """
        with torch.no_grad():
            parts = all_gather_object((self._samples, self._wrong, self._meters))
        self._forget()
        for samples, wrong, meters in parts:
            self._samples += samples
            for rank, count in wrong.items():
                self._wrong[rank] += count
            for layer, meter in meters.items():
                if layer in self._meters:
                    self._meters[layer].merge(meter)
                else:
                    self._meters[layer] = meter
        if self._samples != size:
            raise MoEConfigError(
                f'ClassificationMetric: {self._samples} images were counted, the test set has {size}: set '
                'sampler=dict(type=..., shuffle=False, round_up=False) and drop_last=False in its data loader'
            )
        metrics = self.compute_metrics([])
        self._forget()
        return {f'{self.prefix}/{key}': value for key, value in metrics.items()} if self.prefix else metrics

    def compute_metrics(self, results: list) -> dict[str, float]:
        """The numbers of the counts so far; logs the table."""
        metrics = {
            'error' if rank == 1 else f'top{rank}_error': wrong / self._samples for rank, wrong in self._wrong.items()
        }
        self.decompositions = {}
        for layer, meter in self._meters.items():
            try:
                found = self.decompositions[layer] = meter.compute()
            except ValueError as error:
                raise DataError(f'ClassificationMetric, layer {layer}: {error}') from error
            for key, value in found.to_dict().items():
                if key != 'error':
                    metrics[key if len(self._meters) == 1 else f'{key}/{layer}'] = value
            self._show(layer, found)
        return metrics

    def _show(self, layer: str, found: Decomposition) -> None:
        classes = self.class_names(found.table.shape[1])
        logger = MMLogger.get_current_instance()
        logger.info(
            f'{layer}: samples by expert and predicted class, {found.samples} in all\n'
            + expert_class_text(found.table, classes)
        )

    def class_names(self, number: int) -> Sequence[str]:
        """Names of the data set's classes; their numbers where it has none."""
        return (self.dataset_meta or {}).get('classes') or [str(i) for i in range(number)]
