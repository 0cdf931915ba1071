"""What attacks raise, on small detectors of several families: losses as in training, gates as in prediction."""

from __future__ import annotations

import math

import pytest
import torch
from mmengine.config import Config
from mmengine.logging import MessageHub
from small_files import plant_logits
from small_models import as_truth, batch, build, detector, family, initialise, losses_of, spread_weights, with_experts
from torch import nn

from moe_det.attacks.objectives import detection_loss, expert_probability, gate_entropy, predict
from moe_det.attacks.perturbations import Ball, pgd
from moe_det.attacks.rows import forced_experts, rows_of_detector
from moe_det.errors import MoEConfigError
from moe_det.probing.places import Truth
from moe_det.routing.router import find_routers

MOE = dict(num_experts=3, top_k=1, width=0.5, constraint=dict(type='KLConstraint', weight=0.5))
FAMILIES = {
    'faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py': ('roi_head.bbox_head.shared_fcs.*', 'MoELinear'),
    'mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py': ('neck.fpn_convs.*', 'MoEConv2d'),
    'detr/detr_r50_8xb2-150e_coco.py': ('decoder.layers.*.ffn', 'MoEFFN'),
    'fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py': ('bbox_head.cls_convs.*', 'MoEConv2d'),
    'ghm/retinanet_r50_fpn_ghm-1x_coco.py': ('bbox_head.cls_convs.*', 'MoEConv2d'),  # its losses count images
}


def scene(scale: float = 1.0) -> tuple[torch.Tensor, object, Truth]:
    """An image of noise, its sample and its ground truths in original pixels, of which the image is ``scale``."""
    data = batch([(64, 64)])
    sample = data['data_samples'][0]
    truth = as_truth(sample.gt_instances, scale=scale)
    del sample.gt_instances, sample.ignored_instances
    sample.set_metainfo({'scale_factor': (scale, scale), 'ori_shape': (int(64 / scale),) * 2})
    return data['inputs'][0].float()[None], sample, truth


FCOS = 'fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py'
TOOD = 'tood/tood_r50_fpn_1x_coco.py'


def small(name: str) -> Config:
    cfg = family(name).model
    if name in (FCOS, TOOD):
        cfg.bbox_head.norm_cfg = {'type': 'GN', 'num_groups': 4}  # torch refuses groups of a single number
    return cfg


def of_family(name: str) -> nn.Module:
    modules, kind = FAMILIES[name]
    experts = [{'modules': modules, 'type': kind, 'num_experts': 2, 'top_k': 1}]
    torch.manual_seed(0)
    return initialise(build(with_experts(small(name), experts))).eval()


def retinanet(**moe) -> nn.Module:
    torch.manual_seed(0)
    return spread_weights(detector({**MOE, **moe})).eval()


@pytest.mark.parametrize('scale', [1.0, 0.5])
def test_the_loss_is_that_of_a_training_step_but_for_noise_and_constraints(scale):
    images, sample, truth = scene(scale)
    model = retinanet(noise=False)
    found = {part: detection_loss(model, sample, truth, part)(images).item() for part in ('class', 'box', 'both')}
    data = batch([(64, 64)])  # boxes in pixels of the image
    for module in model.modules():  # norms of a batch of one are those of evaluation
        module.eval()
    with torch.no_grad():
        expected = model(**model.data_preprocessor(data, False), mode='loss')
    expected = {name: sum(values).item() for name, values in expected.items() if not name.startswith('loss_moe')}
    assert found['class'] == pytest.approx(expected['loss_cls'], rel=1e-5)
    assert found['box'] == pytest.approx(expected['loss_bbox'], rel=1e-4)
    assert found['both'] == pytest.approx(sum(expected.values()), rel=1e-4)


def test_heads_that_ask_whether_they_train_give_the_loss_what_it_expects():
    """FCOS multiplies its distances by the stride in evaluation alone; nothing else in it depends on the mode here."""
    torch.manual_seed(0)
    model = initialise(build(small(FCOS)))
    model.bbox_head.norm_on_bbox = True
    images, sample, truth = scene()
    expected = losses_of(model, batch([(64, 64)]))
    found = detection_loss(model.eval(), sample, truth)(images)
    assert found.item() == pytest.approx(
        sum(value.item() for name, value in expected.items() if 'loss' in name), rel=1e-5
    )
    assert not any(module.training for module in model.modules())


@pytest.mark.parametrize('name', ['retinanet', *FAMILIES])
def test_an_attack_raises_the_loss_and_leaves_the_detector_as_it_was(name):
    model = retinanet() if name == 'retinanet' else of_family(name)
    images, sample, truth = scene()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    objective = detection_loss(model, sample, truth)
    assert objective(images).item() == objective(images).item()  # no noise, the same samples
    found = pgd(images, objective, Ball(8.0), 2, 4.0, generator=torch.Generator().manual_seed(0))
    assert objective(found).item() > objective(images).item()
    assert (found - images).abs().max() <= 8 + 1e-4 and found.min() >= 0 and found.max() <= 255
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module.training for module in model.modules())
    assert set(sample.keys()) == set() and torch.isfinite(predict(model, found, sample).scores).all()
    if 'mask' in name:
        assert model.roi_head.with_mask
    for gates in (
        gate_entropy(model, sample),
        expert_probability(model, sample, dict.fromkeys(find_routers(model), (0,))),
    ):
        moved = pgd(images, gates, Ball(8.0), 2, 4.0, generator=torch.Generator().manual_seed(0))
        assert gates(moved).item() > gates(images).item()


def test_a_loss_that_asks_for_the_epoch_is_that_of_a_late_one():
    model = initialise(build(small(TOOD))).eval()
    images, sample, truth = scene()
    epochs = MessageHub.get_current_instance().runtime_info
    found = {}
    for epoch in (None, 0, 100):
        epochs.pop('epoch', None)
        if epoch is not None:
            epochs['epoch'] = epoch
        found[epoch] = detection_loss(model, sample, truth)(images).item()
        assert epochs.get('epoch') == epoch
    assert found[None] == found[100] != found[0]


@pytest.mark.parametrize('kind', ['MutualDistillation', 'DenseTeacher'])
def test_distillation_is_no_part_of_the_loss(kind):
    images, sample, truth = scene()
    tower = dict(placement='tower', top_k=2, width=1.0)
    model = retinanet(**tower, distillation=dict(type=kind))
    distillation = model.bbox_head.distillation
    expected = detection_loss(retinanet(**tower), sample, truth)(images)
    assert torch.equal(detection_loss(model, sample, truth)(images), expected)
    assert model.bbox_head.distillation is distillation is not None


def test_a_part_of_the_loss_that_is_not_there_is_an_error():
    images, sample, truth = scene()
    model = retinanet()
    model.loss = lambda *_: {'positive_bag_loss': torch.ones(())}
    assert detection_loss(model, sample, truth)(images).item() == 1
    with pytest.raises(MoEConfigError, match='--loss box: no loss of RetinaNet is named after it'):
        detection_loss(model, sample, truth, 'box')(images)


def test_the_values_of_planted_gates():
    images, sample, _ = scene()
    model = retinanet()
    plant_logits(model, 0.0, math.log(2), 0.0)  # probabilities 1/4, 1/2, 1/4
    assert gate_entropy(model, sample)(images).item() == pytest.approx(1.5 * math.log(2), rel=1e-5)
    target = dict.fromkeys(find_routers(model), (1,))
    assert expert_probability(model, sample, target)(images).item() == pytest.approx(math.log(0.5), rel=1e-5)


def test_the_entropy_of_gates_has_a_gradient_that_differences_confirm():
    images, sample, _ = scene()
    model = retinanet()
    objective = gate_entropy(model, sample)
    pixels = images.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(objective(pixels).sum(), pixels)
    towards = gradient / gradient.abs().max()
    with torch.no_grad():
        rise = (objective(images + towards) - objective(images - towards)).item() / 2
    assert rise == pytest.approx((gradient * towards).sum().item(), rel=0.05) and rise > 0


def test_rows_force_each_expert_in_every_layer_and_each_copy_in_every_shard():
    rows = rows_of_detector('mine', retinanet(), ('own', 'forced', 'all'))
    assert [row.name for row in rows] == ['mine', 'expert 0', 'expert 1', 'expert 2', 'all experts']
    assert [row.decides for row in rows] == [True, False, False, False, False]
    assert {i.top_k for i in rows[-1].interventions.values()} == {3} and len(rows[-1].interventions) == 2
    assert forced_experts(rows[2]) == {'bbox_head.cls': (1,), 'bbox_head.reg': (1,)}
    shards = retinanet(placement='shards', shards=2, copies=3, num_experts=6, top_k=2, width=1)
    _, _, second, _, every = rows_of_detector('mine', shards, ('own', 'forced', 'all'))
    assert {i.forced for i in second.interventions.values()} == {(1, 4)}
    assert {i.forced for i in every.interventions.values()} == {(0, 1, 2, 3, 4, 5)}
    assert [row.name for row in rows_of_detector('dense', detector().eval(), ('forced', 'all'))] == ['dense']
    assert 'all experts' not in [
        row.name for row in rows_of_detector('soft', retinanet(top_k=3, soft_mixture=True), ('all',))
    ]
