"""Detectors with experts in other places than the head, and classifiers: a training step and a prediction."""

from __future__ import annotations

from collections.abc import Callable

import torch
from device.head_cases import FOUR, train, vary_gates
from device.watch import Watch
from small_models import batch, build, detector, losses_of, predictions_of
from torch import Tensor, nn

from moe_det.classification.augmentation import BatchAugmentation
from moe_det.classification.mixture import MixtureClassifier
from moe_det.routing.collection import attach_collection

KL = dict(type='KLConstraint', weight=0.25)
WIDE = [32, 64, 128, 256]  # channels of a ResNet-50's stages at 8 base channels
# name -> changes of the parts of a small RetinaNet
DETECTORS = {
    'MoEResNet, stage': dict(backbone=dict(type='MoEResNet', moe=dict(stages=(4,), **FOUR, constraint=KL))),
    'MoEResNet, convolution': dict(
        backbone=dict(type='MoEResNet', moe=dict(convs=(3,), **FOUR, constraint=KL), with_cp=True)
    ),
    # two towers, one convolution each, on five levels
    'MoEConv2d': dict(bbox_head=dict(conv_cfg=dict(type='MoEConv2d', num_levels=5, **FOUR, constraint=KL))),
    'MoEBlock': dict(
        backbone=dict(
            depth=50,
            plugins=[
                dict(
                    cfg=dict(type='MoEBlock', **FOUR, constraint=KL),
                    stages=(False, False, False, True),
                    position='after_conv3',
                )
            ],
        ),
        neck=dict(in_channels=WIDE),
    ),
}
QUERY = dict(type='ConvNetGate', image_size=10, channels=(2,), norm=(0,), hidden=(8, 4))
EXPERT = dict(in_channels=1, image_size=10, channels=(2,), hidden=(6, 4))
CLASSIFIERS = {
    'mixture': dict(gate=QUERY, constraint=dict(type='ImportanceConstraint')),
    'attentive mixture': dict(
        gate=dict(type='AttentiveGate', hidden_channels=4, query=dict(QUERY, hidden=(8,))),
        constraint=dict(type='SampleSimilarityConstraint'),
    ),
}


def run_detector(name: str, watch: Watch) -> None:
    """Trains for one step that is not counted and one that is, and predicts."""
    torch.manual_seed(0)
    model = vary_gates(detector(**DETECTORS[name])).to(watch.device)
    attach_collection(model)
    watch.keep('start', dict(model.named_parameters()))
    train(model, lambda: losses_of(model, batch()), watch, rate=0.01)
    with watch.counted('predict'):
        found = predictions_of(model, batch())
    for image, one in enumerate(found):
        watch.keep(f'image {image}', dict(boxes=one.bboxes, scores=one.scores, labels=one.labels))


def run_mixture(name: str, watch: Watch) -> None:
    """A mixture of small classifiers."""
    torch.manual_seed(0)
    moe = dict(num_experts=3, top_k=3, soft_mixture=True, noise=False, **CLASSIFIERS[name])
    run_classifier(MixtureClassifier(5, EXPERT, moe, 'output'), torch.randn(12, 1, 10, 10), watch)


def run_resnet(watch: Watch) -> None:
    """A ResNet-18 for small images, sparse in its last stage."""
    torch.manual_seed(0)
    moe = dict(stages=(4,), num_experts=4, top_k=1, constraint=dict(type='RelativeImportanceConstraint'))
    backbone = dict(type='MoEResNet', depth=18, base_channels=8, small_images=True, norm_eval=False, moe=moe)
    backbone.update(out_indices=(3,), init_cfg=[])
    model = build(dict(type='ResNetClassifier', num_classes=5, backbone=backbone))
    run_classifier(vary_gates(model), torch.randn(8, 3, 32, 32), watch)


def run_classifier(model: nn.Module, images: Tensor, watch: Watch) -> None:
    model = model.to(watch.device).train()
    labels = torch.arange(len(images), device=watch.device) % 5
    images = images.to(watch.device)
    watch.keep('start', dict(model.named_parameters()))
    train(model, lambda: model(images, labels, mode='loss'), watch, rate=0.01)
    model.eval()
    with watch.counted('predict'), torch.no_grad():
        (found,) = model(images, labels, mode='predict')
    watch.keep('predicted', found)


def run_augmentation(watch: Watch) -> None:
    """A batch of images that lie on the device."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (6, 3, 16, 16), dtype=torch.uint8, generator=generator).to(watch.device)
    augment = BatchAugmentation(flip=0.5, jitter=(0.4, 0.4, 0.4), padding=2)
    numbers = augment.draw(6, seed=0, epoch=0).to(watch.device)
    first = augment(images, numbers)  # puts its constants on the device
    with watch.counted('batch'):
        again = augment(images, numbers)
    watch.keep('batch', dict(first=first, again=again))


CASES: dict[str, Callable[[Watch], None]] = {
    **{f'detector: {name}': lambda watch, name=name: run_detector(name, watch) for name in DETECTORS},
    **{f'classifier: {name}': lambda watch, name=name: run_mixture(name, watch) for name in CLASSIFIERS},
    'classifier: ResNet-18': run_resnet,
    'augmentation': run_augmentation,
}
