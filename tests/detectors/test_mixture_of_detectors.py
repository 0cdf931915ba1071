"""Mixtures of whole detectors: what they compute, what they train, and what they refuse."""

from __future__ import annotations

import copy
from pathlib import Path

import moe_det.registry  # noqa: F401 - first: supplies the operators that mmdet's import needs

# isort: split
import numpy as np
import pytest
import torch
from mmengine.optim import OptimWrapper
from small_models import (
    CLASSES,
    RETINANET,
    batch,
    build,
    config,
    family,
    initialise,
    losses_of,
    mmdet_scope,
    predictions_of,
    shrink,
    spread_weights,
)
from torch import Tensor, nn

from moe_det.attacks.rows import rows_of_detector
from moe_det.converters.places import expert_places, place_named
from moe_det.cost.part_costs import WHOLE, model_cost
from moe_det.errors import CheckpointError, MoEConfigError
from moe_det.probing.conditions import conditions_of, forced, swept
from moe_det.probing.places import Truth
from moe_det.probing.probe import Probe
from moe_det.routing import RoutingRecorder, find_routers
from moe_det.routing.gates import global_average
from moe_det.routing.intervention import Intervention, intervene

CHOICE = torch.tensor([[1.0, -1.0], [-1.0, 1.0], [1.0, -1.0]])  # logits of three images
ATSS, GFL = 'atss/atss_r50_fpn_1x_coco.py', 'gfl/gfl_r50_fpn_1x_coco.py'


def tiny(name: str = RETINANET) -> dict:
    """The ``model`` of a small detector."""
    if name != RETINANET:
        cfg = family(name)
        cfg.model.backbone.depth = 18
        cfg.model.neck.in_channels = [8, 16, 32, 64]
        return cfg.model.to_dict()
    cfg = config(f"_base_ = '{RETINANET}'")
    cfg.model.backbone.depth = 18
    shrink(cfg)
    cfg.model.bbox_head.stacked_convs = 1
    return cfg.model.to_dict()


def write(folder: Path, name: str = RETINANET) -> tuple[list[dict], list[nn.Module]]:
    """Entries of two detectors with different weights, and the detectors."""
    entries, detectors = [], []
    for seed in range(2):
        detector = spread_weights(build(tiny(name)), seed).eval()
        file = folder / f'{seed}.pth'
        torch.save(dict(state_dict=detector.state_dict()), file)
        entries.append(dict(model=tiny(name), checkpoint=str(file)))
        detectors.append(detector)
    return entries, detectors


@pytest.fixture(scope='module')
def trained(tmp_path_factory) -> tuple[list[dict], list[nn.Module]]:
    return write(tmp_path_factory.mktemp('detectors'))


def mixture(entries: list[dict], **keys) -> nn.Module:
    torch.manual_seed(0)
    return initialise(build(dict(type='MixtureOfDetectors', detectors=copy.deepcopy(entries), **keys))).eval()


def images(count: int = 3) -> Tensor:
    scale = torch.tensor([0.2, 1.0, 3.0], dtype=torch.float64)[:count, None, None, None]
    return scale * torch.randn(count, 3, 64, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def outputs(model: nn.Module, x: Tensor) -> list[list[Tensor]]:
    with torch.no_grad():
        return [list(levels) for levels in model.bbox_head(model.extract_feat(x))]


def gate_weights(gate: nn.Module, detectors: list[nn.Module], x: Tensor) -> Tensor:
    """(N, E): softmax of a linear layer on the pooled last maps of the backbones."""
    with torch.no_grad():
        pooled = torch.cat([d.backbone(x)[-1].mean((2, 3)) for d in detectors], dim=1)
        return torch.softmax(pooled @ gate.fc.weight.T + gate.fc.bias, dim=1)


def plant(gate: nn.Module, detectors: list[nn.Module], x: Tensor, logits: Tensor) -> None:
    """Gives a linear gate the weights with which images have these logits (N, E)."""
    with torch.no_grad():
        pooled = torch.cat([global_average(d.backbone(x)[-1]) for d in detectors], dim=1)
        gate.fc.weight.copy_((torch.linalg.pinv(pooled) @ logits.to(pooled)).T)
        gate.fc.bias.zero_()


def plant_all(model: nn.Module, detectors: list[nn.Module], x: Tensor) -> None:
    """Gives every gate another logit for every image."""
    generator = torch.Generator().manual_seed(0)
    for router in find_routers(model).values():
        plant(router.gate, detectors, x, torch.randn(len(x), 2, generator=generator))


def mixed_logits(weights: Tensor, logits: list[Tensor]) -> Tensor:
    """The logit of sum_e w_e sigmoid(z_e), of the definition; ``weights`` (N, E, ...) broadcast to ``logits``."""
    p = sum(weights[:, e] * torch.sigmoid(z) for e, z in enumerate(logits))
    return torch.log(p / (1 - p))


@pytest.mark.parametrize('name', [RETINANET, ATSS, GFL])
def test_outputs_are_probabilities_and_deltas_weighted_by_the_gate(tmp_path, name):
    entries, detectors = write(tmp_path, name)
    model = mixture(entries)
    for module in (model, *detectors):
        module.double()
    x = images()
    plant_all(model, detectors, x)
    weights = gate_weights(find_routers(model)['bbox_head.image'].gate, detectors, x)
    assert weights.min() > 0.02 and weights[:, 0].std() > 0.1
    weights = weights[..., None, None, None]
    first, second = (outputs(d, x) for d in detectors)
    found = outputs(model, x)
    assert len(found) == len(first)
    for kind, levels in enumerate(found):
        for level, maps in enumerate(levels):
            pair = [first[kind][level], second[kind][level]]
            linear = weights[:, 0] * pair[0] + weights[:, 1] * pair[1]
            expected = linear if kind == 1 else mixed_logits(weights, pair)
            torch.testing.assert_close(maps, expected, rtol=1e-6, atol=1e-6)


def test_each_class_and_the_boxes_have_gates_of_their_own(trained):
    entries, detectors = trained
    detectors = copy.deepcopy(detectors)
    model = mixture(entries, classwise=True)
    for module in (model, *detectors):
        module.double()
    names = ['box', *(f'class_{c}' for c in range(CLASSES))]
    assert list(find_routers(model)) == [f'bbox_head.{name}' for name in names]
    x = images()
    plant_all(model, detectors, x)
    of_boxes, *of_classes = (gate_weights(r.gate, detectors, x) for r in find_routers(model).values())
    per_class = torch.stack(of_classes, dim=2)[..., None, None]  # (N, E, C, 1, 1)
    logits, deltas = outputs(model, x)
    (first_logits, first_deltas), (second_logits, second_deltas) = (outputs(d, x) for d in detectors)
    for level in range(5):
        pair = [z[level].unflatten(1, (-1, CLASSES)).transpose(0, 1) for z in (first_logits, second_logits)]
        expected = torch.stack([mixed_logits(per_class, list(of_anchor)) for of_anchor in zip(*pair, strict=True)], 1)
        torch.testing.assert_close(logits[level], expected.flatten(1, 2), rtol=1e-6, atol=1e-6)
        weights = of_boxes[..., None, None, None]
        expected = weights[:, 0] * first_deltas[level] + weights[:, 1] * second_deltas[level]
        torch.testing.assert_close(deltas[level], expected, rtol=1e-9, atol=1e-9)


def assert_chosen(found: list[list[Tensor]], detectors: list[nn.Module], x: Tensor) -> None:
    """Each image has the outputs of the detector that :data:`CHOICE` prefers."""
    for image, expert in enumerate(CHOICE.argmax(1).tolist()):
        alone = outputs(detectors[expert], x)
        for ours, theirs in zip(sum(found, []), sum(alone, []), strict=True):
            torch.testing.assert_close(ours[image], theirs[image], rtol=1e-4, atol=1e-4)


def assert_equal(ours: list[list[Tensor]], theirs: list[list[Tensor]]) -> None:
    for mine, other in zip(sum(ours, []), sum(theirs, []), strict=True):
        assert torch.equal(mine, other)


def test_a_gate_that_was_trained_to_mix_can_choose(trained):
    entries, detectors = trained
    x = images().float()
    mixed, chosen = mixture(entries), mixture(entries, test_top_k=1)
    for model in (mixed, chosen):
        plant(find_routers(model)['bbox_head.image'].gate, detectors, x, CHOICE)
    assert {name: value.shape for name, value in mixed.state_dict().items()} == {
        name: value.shape for name, value in chosen.state_dict().items()
    }
    found = outputs(chosen, x)
    assert_chosen(found, detectors, x)
    assert not torch.allclose(outputs(mixed, x)[0][0], found[0][0], atol=1e-4)


@pytest.mark.parametrize('keys', [dict(test_top_k=1), dict(forced=1)])
def test_what_runs_in_evaluation_is_part_of_the_model_and_known_to_the_tools(trained, keys):
    entries, _ = trained
    model, x = mixture(entries, **keys), images().float()
    assert_equal(outputs(copy.deepcopy(model), x), outputs(model, x))  # averaged weights are those of a copy
    assert {condition.name for condition in conditions_of(model)} >= {swept(2)}
    assert swept(1) not in {condition.name for condition in conditions_of(model)}  # its own
    assert [row.name for row in rows_of_detector('model', model, ('own', 'all'))] == ['model', 'all experts']
    with intervene(model, {'bbox_head.image': Intervention(top_k=2)}):
        assert_equal(outputs(model, x), outputs(mixture(entries), x))
    with mmdet_scope():
        tested, trained_so = (
            model_cost(dict(type='MixtureOfDetectors', detectors=entries, gate_sees=[0], **how), (64, 64))
            for how in (keys, dict(top_k=1))
        )
    assert tested.parts[WHOLE].active_macs == trained_so.parts[WHOLE].active_macs


@pytest.mark.parametrize('keys', [{}, dict(classwise=True), dict(top_k=1)])
def test_a_forced_detector_gives_exactly_what_it_gives_alone(trained, keys):
    entries, detectors = trained
    model = mixture(entries, **keys)
    x = images().float()
    for expert, detector in enumerate(detectors):
        with intervene(model, {name: Intervention(forced=expert) for name in find_routers(model)}):
            assert_equal(outputs(model, x), outputs(detector, x))
            if keys:
                continue
            for ours, theirs in zip(predictions_of(model, batch()), predictions_of(detector, batch()), strict=True):
                assert len(ours) > 0 and torch.equal(ours.bboxes, theirs.bboxes)
                assert torch.equal(ours.scores, theirs.scores)
    assert_equal(outputs(mixture(entries, forced=1, **keys), x), outputs(detectors[1], x))


def test_all_forced_are_an_ensemble_with_equal_weights(trained):
    entries, detectors = trained
    model = mixture(entries, forced=[0, 1])
    x = images().float()
    plant_all(model, detectors, x)
    first, second = (outputs(d, x) for d in detectors)
    for level, deltas in enumerate(outputs(model, x)[1]):
        torch.testing.assert_close(deltas, (first[1][level] + second[1][level]) / 2, rtol=1e-5, atol=1e-5)


def test_one_of_them_runs_each_image_alone_and_the_others_do_not_run(trained):
    entries, detectors = trained
    model = mixture(entries, top_k=1, gate_sees=[1])
    x = images().float()
    plant(find_routers(model)['bbox_head.image'].gate, detectors[1:], x, CHOICE)
    ran: list[tuple[str, int]] = []
    for expert in model.experts:
        for part in ('backbone', 'neck'):
            module = getattr(expert.detector, part)
            label = f'{part} {expert.number}'
            module.register_forward_hook(lambda _, inputs, __, label=label: ran.append((label, len(inputs[0]))))
    with RoutingRecorder(model) as recorder:
        recorder.start_batch([5, 6, 7])
        found = outputs(model, x)
    (record,) = recorder.records
    assert record.unit == 'image' and record.image_ids.tolist() == [5, 6, 7]
    assert record.weights.tolist() == [[1, 0], [0, 1], [1, 0]]
    counts = {label: count for label, count in ran if label.startswith('backbone')}
    assert counts == {'backbone 1': 3, 'backbone 0': 2}
    assert_chosen(found, detectors, x)
    ran.clear()
    with intervene(model, {'bbox_head.image': Intervention(forced=1)}):
        outputs(model, x)
    assert {label for label, _ in ran} == {'backbone 1', 'neck 1'}


@pytest.mark.parametrize('keys', [{}, dict(classwise=True), dict(top_k=1)])
def test_the_gates_alone_learn_from_the_detectors_own_loss(trained, keys):
    model = mixture(trained[0], **keys)
    losses = losses_of(model, batch())
    assert set(losses) == {'loss_cls', 'loss_bbox'}
    assert not any(expert.detector.training for expert in model.experts)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    gates = {key for key, parameter in model.named_parameters() if parameter.requires_grad}
    assert gates == {key for key in before if '.gate.' in key}
    sum(losses.values()).backward()
    assert {key for key, parameter in model.named_parameters() if parameter.grad is not None} == gates
    assert all(model.get_parameter(key).grad.abs().sum() > 0 for key in gates)
    wrapper = OptimWrapper(torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1))
    model.train_step(batch(), wrapper)
    assert {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])} == gates


def test_the_loss_of_a_forced_detector_is_its_own(trained):
    entries, detectors = trained
    model = mixture(entries)
    data = model.data_preprocessor(batch(), False)
    with torch.no_grad(), intervene(model, {'bbox_head.image': Intervention(forced=1)}):
        ours, theirs = (m.loss(data['inputs'], data['data_samples']) for m in (model, detectors[1]))
    for key, losses in theirs.items():
        assert torch.equal(torch.stack(ours[key]), torch.stack(losses))


def test_a_checkpoint_of_the_mixture_needs_no_other_file(tmp_path):
    entries, _ = write(tmp_path)
    model = mixture(entries)
    expected = predictions_of(model, batch())
    state = copy.deepcopy(model.state_dict())
    for file in tmp_path.glob('*.pth'):
        file.unlink()
    other = build(dict(type='MixtureOfDetectors', detectors=copy.deepcopy(entries)))
    other.load_state_dict(state)
    for ours, theirs in zip(predictions_of(other, batch()), expected, strict=True):
        assert torch.equal(ours.bboxes, theirs.bboxes) and torch.equal(ours.scores, theirs.scores)
    with pytest.raises(CheckpointError, match=r'model\.detectors\.0\.checkpoint: .*0\.pth does not exist'):
        initialise(build(dict(type='MixtureOfDetectors', detectors=copy.deepcopy(entries))))


def test_the_size_report_asks_it_as_any_detector(trained):
    entries, detectors = trained
    model = mixture(entries)
    truths = [Truth(np.array([i]), np.array([[8.0, 8.0, 20.0, 20.0]]), np.array([0])) for i in range(2)]
    findings = Probe(model, conditions_of(model))([0, 1], batch(), truths)
    layer = findings.layers['bbox_head.image']
    assert layer.weights.shape == (2, 2) and np.allclose(layer.weights.sum(1), 1)
    assert layer.truth_rows.tolist() == [0, 1]
    for expert, detector in enumerate(detectors):
        alone = predictions_of(detector, batch())
        found = findings.conditions[forced('bbox_head.image', expert)]
        assert np.allclose(found[:, 5], torch.cat([result.scores for result in alone]).numpy())


def test_checkpoint_tools_say_that_they_cannot_change_it(trained):
    places = expert_places(mixture(trained[0]))
    with pytest.raises(MoEConfigError, match='--drop: the model has no layer whose experts could be changed'):
        place_named('bbox_head.image', places, '--drop', routers=True)


def test_cost_counts_the_detectors_that_run(trained):
    entries, _ = trained
    keys = dict(top_k=1, gate_sees=[0])
    with mmdet_scope():
        mixed = model_cost(dict(type='MixtureOfDetectors', detectors=entries, **keys), (64, 64)).parts[WHOLE]
        alone = model_cost(tiny(), (64, 64)).parts
    gate = 64 * 2
    assert mixed.macs == pytest.approx(2 * alone[WHOLE].macs + gate, rel=1e-3)
    backbone_of_gate = alone['backbone'].macs  # runs for every image; the other one only with its detector
    assert alone[WHOLE].macs + gate < mixed.active_macs < alone[WHOLE].macs + gate + backbone_of_gate


def changed(**changes) -> dict:
    """A small detector with other keys in its head."""
    model = tiny()
    model['bbox_head'].update(changes)
    return model


GENERATOR = dict(type='AnchorGenerator', octave_base_scale=4, scales_per_octave=3)
RATIOS, STRIDES = [0.5, 1.0, 2.0], [8, 16, 32, 64, 128]


@pytest.mark.parametrize(
    'model, message',
    [
        (changed(num_classes=5), r'model\.detectors\.1: num_classes 5, but model\.detectors\.0 has 3'),
        (
            changed(anchor_generator=dict(GENERATOR, ratios=RATIOS, strides=[4, *STRIDES[:4]])),
            r'model\.detectors\.1: strides \[\(4, 4\)',
        ),
        (changed(anchor_generator=dict(GENERATOR, ratios=[1.0], strides=STRIDES)), r'model\.detectors\.1: anchors'),
        (tiny(ATSS), 'model.detectors.1: bbox_head ATSSHead, but'),
        (dict(type='nothing'), 'nothing'),
    ],
)
def test_detectors_of_another_geometry_are_refused(trained, model, message):
    entries = [trained[0][0], dict(model=model, checkpoint='b.pth')]
    with pytest.raises((MoEConfigError, KeyError), match=message):
        mixture(entries)


@pytest.mark.parametrize(
    'keys, message',
    [
        (dict(detectors=[]), 'model.detectors=.*: expected a list of at least two'),
        (dict(detectors=[dict(model=tiny(), checkpoint='a.pth')]), 'expected a list of at least two'),
        (dict(detectors=[dict(model=tiny())] * 2), r'model\.detectors\.0=.*: expected a dict with checkpoint'),
        (dict(detectors=[dict(config='none.py', checkpoint='a.pth')] * 2), r'model\.detectors\.0\.config: .*none\.py'),
        (dict(forced=2), r'model\.forced=\[2\]: expected different numbers of detectors, from 0 to 1'),
        (dict(gate_sees=[0, 0]), r'model\.gate_sees=\[0, 0\]'),
        (dict(top_k=3), r'model\.top_k=3: expected at most'),
        (dict(test_top_k=3), r'model\.test_top_k=3: expected from 1 to 2'),
        (dict(test_top_k=1, forced=0), r'model\.test_top_k=1: does not go with forced=0'),
        (dict(test_top_k=1, classwise=True), r'model\.test_top_k=1: does not go with classwise=True'),
        (dict(classwise=1), 'model.classwise=1: expected True or False'),
        (dict(weighting='full_softmax'), "model.weighting='full_softmax'.*shrink boxes"),
        (dict(gate=dict(type='AttentiveGate')), 'model.gate: AttentiveGate needs the features of experts'),
        (dict(gate=dict(type='Gap')), "model.gate: unknown moe gate 'Gap'"),
    ],
)
def test_wrong_keys_have_one_message_each(trained, keys, message):
    with pytest.raises(MoEConfigError, match=message):
        mixture(**{'entries': trained[0], **keys} if 'detectors' not in keys else {'entries': keys['detectors']})


def test_a_checkpoint_of_another_detector_is_refused(trained, tmp_path):
    entries = copy.deepcopy(trained[0])
    torch.save(dict(state_dict={'backbone.conv1.weight': torch.zeros(8, 3, 7, 7)}), tmp_path / 'part.pth')
    entries[1]['checkpoint'] = str(tmp_path / 'part.pth')
    with pytest.raises(CheckpointError, match=r'part\.pth does not match model\.detectors\.1: it lacks'):
        mixture(entries)
