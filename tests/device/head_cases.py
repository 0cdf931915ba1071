"""Heads with experts of every kind: two training steps and a prediction on small pyramids."""

from __future__ import annotations

from collections.abc import Callable

import torch
from device.watch import Watch
from small_models import CLASSES, head, head_detections, initialise, metas, objects, pyramid
from torch import nn

from moe_det.routing import find_routers

IMAGES = 2
FOUR = dict(num_experts=4, top_k=2)
ONE = dict(num_experts=4, top_k=1)
ATTENTIVE = dict(type='AttentiveGate', hidden_channels=8)
BOX_SIZES = dict(type='SampleSimilarityConstraint', distance='box_sizes')
# name -> bbox_head.moe; together they have every placement, unit, gate and constraint
HEADS = {
    'branch': dict(**FOUR, constraint=dict(type='KLConstraint')),
    'one expert': dict(**ONE, constraint=dict(type='RelativeImportanceConstraint')),
    'straight through': dict(
        **ONE, weighting='straight_through', copies_share=True, constraint=dict(type='SelectionBiasConstraint')
    ),
    'tower': dict(
        **FOUR,
        placement='tower',
        gate=dict(type='ConvGAPGate', hidden_channels=4),
        constraint=[dict(type='SwitchConstraint'), dict(type='ZLossConstraint')],
    ),
    'first': dict(
        **FOUR,
        placement='first',
        gate=dict(type='TwoConvGAPGate', hidden_channels=4),
        constraint=dict(type='EntropyConstraint'),
    ),
    'last': dict(**FOUR, placement='last', balance_over='level', constraint=dict(type='ImportanceConstraint')),
    'shards': dict(placement='shards', shards=2, copies=3, copies_share=True, constraint=dict(type='KLConstraint')),
    'image': dict(**FOUR, unit='image', shared_gate=True, constraint=dict(type='MeanImportanceConstraint')),
    'image, box sizes': dict(**FOUR, unit='image', constraint=BOX_SIZES),
    'patch': dict(**ONE, unit='patch', grid=2, constraint=dict(type='SampleSimilarityConstraint')),
    'patch, box sizes': dict(**ONE, unit='patch', grid=2, constraint=BOX_SIZES),
    'every expert': dict(**FOUR, dispatch='all', shared_expert=True, constraint=dict(type='KLConstraint')),
    'attentive': dict(**FOUR, gate=ATTENTIVE, constraint=dict(type='ImportanceConstraint')),
    'distilled': dict(
        **FOUR, gate=dict(type='DistilledGate', teacher=ATTENTIVE, student=dict(type='GAPLinearGate'), kl_weight=1.0)
    ),
    'fine-grained': dict(
        **FOUR,
        placement='tower',
        shared_expert=2,
        weighting='full_softmax',
        gate=dict(type='MLPGate', hidden=(4,)),
        constraint=dict(type='UsageEntropyConstraint'),
    ),
    'entmax': dict(**FOUR, weighting='entmax', gate=dict(type='NormalisedLinearGate')),
    'experts choose': dict(
        placement='last', unit='patch', grid=2, num_experts=4, top_k=4, rows_per_expert=2, shared_expert=True
    ),
}


def vary_gates(model: nn.Module) -> nn.Module:
    """Makes the gates depend on what they see, so that rows choose different experts."""
    with torch.no_grad():
        for number, router in enumerate(find_routers(model).values()):
            generator = torch.Generator().manual_seed(number)
            for parameter in router.gate.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / 2)
    return model


def make_head(name: str, device: str) -> nn.Module:
    """A head of the table, the same on every device."""
    torch.manual_seed(0)
    model = vary_gates(initialise(head(HEADS[name])))
    if name == 'distilled':  # its teacher comes from the checkpoint of an attentive head
        model.load_state_dict(make_head('attentive', 'cpu').state_dict(), strict=False)
    return model.to(device).train()


def losses_of_head(model: nn.Module, device: str) -> dict[str, torch.Tensor]:
    """Losses on two images, each summed over levels."""
    maps = tuple(level.to(device) for level in pyramid(IMAGES))
    targets = [objects(image).to(device) for image in range(IMAGES)]
    losses = model.loss_by_feat(*model(maps), targets, metas(IMAGES))
    return {key: sum(value) if isinstance(value, list) else value for key, value in losses.items()}


def train(model: nn.Module, losses: Callable[[], dict[str, torch.Tensor]], watch: Watch, rate: float) -> None:
    """Two steps of SGD; the second is counted."""
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=rate, momentum=0.9)
    for step in range(2):
        with watch.counted('step'):
            found = losses()
            optimizer.zero_grad()
            sum(value for key, value in found.items() if 'loss' in key).backward()
            optimizer.step()
        watch.keep(f'step {step}', found)
    watch.keep('end', model.state_dict())


def run_head(name: str, watch: Watch) -> None:
    """Trains a head for two steps, the second of which is counted, and predicts."""
    model = make_head(name, watch.device)
    watch.keep('start', dict(model.named_parameters()))
    train(model, lambda: losses_of_head(model, watch.device), watch, rate=0.1)
    maps = [level.to(watch.device) for level in pyramid(IMAGES)]
    model.eval()
    with watch.counted('predict'):
        detections = head_detections(model, maps)
    for image, found in enumerate(detections):
        assert len(found) and found.labels.max() < CLASSES
        watch.keep(f'image {image}', dict(boxes=found.bboxes, scores=found.scores, labels=found.labels))


CASES: dict[str, Callable[[Watch], None]] = {
    f'head: {name}': lambda watch, name=name: run_head(name, watch) for name in HEADS
}
