"""What attacks raise: a detector's own training loss, the entropy of its gates, the probability of an expert.

The detector is in evaluation mode: norms and dropout as in a prediction, the gates' own decision without noise, and
interventions at work. mmdet's detectors and heads ask a flag whether they are being trained, some of them to know in
what form a loss wants their outputs; only these few modules are told so while a loss is computed.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from mmengine.logging import MessageHub
from mmengine.structures import InstanceData
from torch import Tensor, nn

from ..errors import MoEConfigError
from ..probing.losses import AUXILIARY
from ..probing.places import Truth
from ..routing.records import Recorder
from ..routing.routing import Routing
from ..routing.selection import log_probabilities
from .perturbations import Objective

if TYPE_CHECKING:
    from mmdet.models.detectors import BaseDetector

_TELLS_MODE = ('bbox_head', 'rpn_head', 'roi_head')
# by what a loss is called; centre-ness and objectness are about whether something is there
_NAMES = {
    'class': ('cls', 'obj', 'centerness', 'heatmap'),
    'box': ('bbox', 'iou', 'dfl', 'l1', 'wh', 'offset', 'pts'),
}
_SMALLEST_SIDE = 1.0  # original pixels; mmdet's CocoDataset leaves smaller boxes out


def model_inputs(model: BaseDetector, images: Tensor, sample) -> dict:
    """What the detector is given for images of pixels; the normalisation passes gradients on.

    Args:
        model: the detector.
        images: (1, 3, H, W) in 0 ... 255, without the padding that the data preprocessor adds.
        sample: the image's data sample, which stays as it is.
    """
    return model.data_preprocessor({'inputs': list(images), 'data_samples': [sample.clone()]}, False)


def predict(model: BaseDetector, images: Tensor, sample) -> InstanceData:
    """Detections, in original pixels, of one image of pixels (1, 3, H, W)."""
    with torch.no_grad():
        return model(**model_inputs(model, images, sample), mode='predict')[0].pred_instances


def detection_loss(model: BaseDetector, sample, truth: Truth, part: str = 'both', seed: int = 0) -> Objective:
    """The detector's own training loss of one image, without the losses of constraints and of masks.

    Args:
        model: in eval mode.
        sample: the image's data sample.
        truth: its ground truths.
        part: ``'class'``, ``'box'`` or ``'both'``, which takes every loss.
        seed: of what heads draw: a sample of the regions, the noise of DINO's queries. It is the same whenever the
            objective is asked, which our attacks therefore raise as one function (our own choice).

    Raises:
        MoEConfigError: when it is asked for a part that no loss of the detector is called after.
    """

    def objective(images: Tensor) -> Tensor:
        data = model_inputs(model, images, sample)
        (own,) = data['data_samples']
        own.gt_instances = _instances(truth, own.metainfo, images.device)
        own.ignored_instances = InstanceData(bboxes=images.new_zeros(0, 4), labels=own.gt_instances.labels[:0])
        devices = [images.device] if images.device.type == 'cuda' else []
        with torch.random.fork_rng(devices), _loss_mode(model):
            torch.manual_seed(seed)
            losses = model.loss(data['inputs'], data['data_samples'])
        return _total(model, losses, part).reshape(1)

    return objective


def _instances(truth: Truth, meta: dict, device: torch.device) -> InstanceData:
    whole = (truth.boxes[:, 2:] >= _SMALLEST_SIDE).all(axis=1)
    boxes = truth.resized(meta)[torch.as_tensor(whole)]
    return InstanceData(bboxes=boxes.to(device), labels=torch.as_tensor(truth.labels[whole], device=device))


def _total(model: nn.Module, losses: dict, part: str) -> Tensor:
    names = [name for name in losses if 'loss' in name and not name.startswith(AUXILIARY)]
    chosen = [name for name in names if part == 'both' or any(word in name for word in _NAMES[part])]
    if not chosen:
        raise MoEConfigError(
            f'--loss {part}: no loss of {type(model).__name__} is named after it ({", ".join(names)}); use both'
        )
    values = []
    for name in chosen:  # several numbers count with their mean, those of several levels with their sum, as in mmengine
        of_levels = [losses[name]] if isinstance(losses[name], Tensor) else losses[name]
        values.append(torch.stack([value.mean() for value in of_levels]).sum())
    return torch.stack(values).sum()


@contextmanager
def _loss_mode(model: BaseDetector) -> Iterator[None]:
    """Lets detector and heads, but nothing inside them, act as in training.

    Masks, which have no truth, are left out.
    """
    parts = [model, *(getattr(model, name) for name in _TELLS_MODE if hasattr(model, name))]
    with contextlib.ExitStack() as stack:
        stack.enter_context(_replaced(getattr(model, 'roi_head', None), 'mask_head', None))
        for module in parts:
            stack.enter_context(_replaced(module, 'training', True))
        stack.enter_context(_buffers_kept(parts[1:]))
        stack.enter_context(_late_epoch())
        yield


@contextmanager
def _replaced(owner: object, name: str, value: object) -> Iterator[None]:
    """Gives an attribute another value, where there is one."""
    before = getattr(owner, name, None)
    if before is None:
        yield
        return
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


@contextmanager
def _buffers_kept(heads: Sequence[nn.Module]) -> Iterator[None]:
    """Some losses (GHM) keep statistics of what they have seen; they get copies to write to."""
    owners = [module for head in heads for module in head.modules() if module._buffers]
    before = [dict(module._buffers) for module in owners]
    for module, buffers in zip(owners, before, strict=True):
        module._buffers.update({name: value if value is None else value.clone() for name, value in buffers.items()})
    try:
        yield
    finally:
        for module, buffers in zip(owners, before, strict=True):
            module._buffers.update(buffers)


@contextmanager
def _late_epoch() -> Iterator[None]:
    """Where no training runs, TOOD's loss still asks for the epoch: one after those with another assigner."""
    hub = MessageHub.get_current_instance()
    if hub.get_info('epoch') is not None:
        yield
        return
    hub.update_info('epoch', sys.maxsize)
    try:
        yield
    finally:
        hub.runtime_info.pop('epoch')


# -- gates ---------------------------------------------------------------------------------------------------------


class GateLogits(Recorder):
    """Collects the gates' logits with their gradient while it is entered.

    Args:
        model: a detector with MoE layers.

    Attributes:
        found: by layer, (R, E) of each call.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.found: dict[str, list[Tensor]] = {name: [] for name in self.routers}

    def receive(self, layer: str, routing: Routing, layout: object) -> None:
        self.found[layer].append(routing.logits)

    def log_probs(self) -> dict[str, Tensor]:
        """(R, E) logarithm of the probabilities of each layer that had rows."""
        return {
            name: log_probabilities(torch.cat(logits), self.routers[name].slots)
            for name, logits in self.found.items()
            if sum(map(len, logits))
        }


def gate_entropy(model: BaseDetector, sample) -> Objective:
    """Entropy in nats of the gates' probabilities: the mean over a layer's rows, then over layers."""

    def entropy(log_probs: Tensor) -> Tensor:
        return -(log_probs.exp() * log_probs).sum(1).mean()

    return _of_gates(model, sample, lambda layers: torch.stack([entropy(layer) for layer in layers.values()]).mean())


def expert_probability(model: BaseDetector, sample, experts: Mapping[str, Sequence[int]]) -> Objective:
    """Logarithm of the probability that the gates give some experts: the mean over rows and experts, then over layers.

    Args:
        model: with MoE layers.
        sample: the image's data sample.
        experts: of each layer, such as one, or the same copy of every shard.
    """

    def value(layers: dict[str, Tensor]) -> Tensor:
        return torch.stack([layer[:, list(experts[name])].mean() for name, layer in layers.items()]).mean()

    return _of_gates(model, sample, value)


def _of_gates(model: BaseDetector, sample, value: Callable[[dict[str, Tensor]], Tensor]) -> Objective:
    def objective(images: Tensor) -> Tensor:
        with GateLogits(model) as gates:
            model(**model_inputs(model, images, sample), mode='tensor')
        layers = gates.log_probs()
        return value(layers).reshape(1) if layers else images.new_zeros(1)

    return objective
