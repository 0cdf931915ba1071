"""Experts that learn from each other: values and gradients derived by hand, and the losses of a head."""

from __future__ import annotations

import math
import types

import moe_det.registry  # noqa: F401 - first: supplies the operators that mmdet's import needs

# isort: split
import pytest
import torch
from small_models import CHANNELS, CLASSES, batch, detector, head, head_losses, losses_of, pyramid, spread_weights
from small_runs import Losses, make_runner

from moe_det.errors import MoEConfigError
from moe_det.hooks.dense_teacher_hook import DenseTeacherHook, teacher_of
from moe_det.models.distillation import DenseTeacher, MutualDistillation
from moe_det.models.expert_features import mutual_distance
from moe_det.routing import find_routers
from moe_det.routing.intervention import Intervention, intervene

MOE = dict(num_experts=4, top_k=2)
MUTUAL = dict(type='MutualDistillation', weight=0.5)


def test_distance_of_two_and_three_experts_by_hand():
    # one position, two channels: experts (1, 0), (3, 4), (5, 2)
    features = torch.tensor([[1.0, 0.0], [3.0, 4.0], [5.0, 2.0]]).view(1, 3, 2, 1, 1)
    two = mutual_distance(features, torch.tensor([[True, True, False]]))
    assert two.item() == pytest.approx((4 + 16) / 2)  # each is the other's mean; over two channels
    # means of the others: (4, 3), (3, 1), (2, 2): squares 9+9, 0+9, 9+0
    three = mutual_distance(features, torch.ones(1, 3, dtype=torch.bool))
    assert three.item() == pytest.approx((18 + 9 + 9) / 2 / 3)


def test_the_gradient_draws_each_expert_to_a_mean_that_stays():
    features = torch.tensor([1.0, 3.0, 8.0], dtype=torch.float64).view(1, 3, 1, 1, 1).requires_grad_()
    mutual_distance(features, torch.ones(1, 3, dtype=torch.bool)).sum().backward()
    means = torch.tensor([5.5, 4.5, 2.0], dtype=torch.float64)
    torch.testing.assert_close(features.grad.flatten(), 2 / 3 * (features.detach().flatten() - means))


def test_one_expert_and_what_was_not_chosen_do_not_count():
    features = torch.tensor([1.0, float('nan'), 8.0]).view(1, 3, 1, 1, 1).requires_grad_()
    chosen = torch.tensor([[True, False, True]])
    distance = mutual_distance(features, chosen)
    assert distance.item() == pytest.approx(49)
    distance.sum().backward()
    assert features.grad.flatten().tolist() == [-7.0, 0.0, 7.0]
    assert mutual_distance(features, torch.tensor([[True, False, False]])).item() == 0


def test_positions_are_the_positive_ones_and_the_hardest_negatives():
    # two anchors a position, three positions: positive | ignored and background | background
    labels = [torch.tensor([[1, CLASSES, CLASSES, CLASSES, CLASSES, CLASSES]]), torch.full((1, 4), CLASSES)]
    weights = [torch.tensor([[1.0, 1, 0, 0, 1, 1]]), torch.ones(1, 4)]
    scores = [torch.zeros(1, 2 * CLASSES, 1, 3), torch.zeros(1, 2 * CLASSES, 1, 2)]
    scores[0][0, :, 0, 1] = 9.0  # ignored
    scores[0][0, 2, 0, 2] = 1.0
    scores[1][0, 3, 0, 0] = 3.0  # hardest
    for negatives, expected in ((0, [1, 0, 0, 0, 0]), (1, [1, 0, 0, 1, 0]), (2, [1, 0, 1, 1, 0]), (9, [1, 0, 1, 1, 1])):
        counted, positive = MutualDistillation(1.0, negatives).positions(labels, weights, scores, CLASSES)
        assert torch.cat([c.flatten() for c in counted]).int().tolist() == expected
        assert torch.cat([p.flatten() for p in positive]).int().tolist() == [1, 0, 0, 0, 0]


def naive_mutual(model, maps, branch: str, weight: float) -> float:
    """Every expert runs on every row, position by position, in the choice that a recorder saw."""
    seen = []
    handle = model.routers[branch].decided.observe(lambda routing, layout: seen.append(routing))
    losses = head_losses(model, maps)
    handle.remove()
    counted, _ = model.distillation.positions(*model._kept_targets, model._kept_scores, CLASSES)
    total, first = 0.0, 0
    for x, at in zip(maps, counted, strict=True):
        for image in range(len(x)):
            chosen = seen[0].indices[first + image].tolist()
            experts = model.branch_experts[branch].experts
            features = [experts[e](x[image : image + 1], True)[1][0].detach() for e in chosen]
            for y, column in at[image].nonzero().tolist():
                f = [feature[:, y, column] for feature in features]
                total += sum(float((f[k] - f[1 - k]).square().sum()) / CHANNELS / 2 for k in (0, 1))
        first += len(x)
    return weight * total / sum(int(at.sum()) for at in counted), losses


@pytest.mark.parametrize('dispatch', ['sorted', 'all'])
@pytest.mark.parametrize('branch', ['cls', 'reg'])
def test_loss_of_a_head_is_that_of_a_loop(branch, dispatch, monkeypatch):
    model = spread_weights(head(dict(**MOE, distillation=MUTUAL, dispatch=dispatch))).train()
    positions = type(model.distillation).positions

    def keep(self, labels, weights, scores, classes):
        model._kept_targets, model._kept_scores = (labels, weights), scores
        return positions(self, labels, weights, scores, classes)

    monkeypatch.setattr(type(model.distillation), 'positions', keep)
    expected, losses = naive_mutual(model, pyramid(), branch, 0.5)
    assert losses[f'loss_moe_mutual_{branch}'].item() == pytest.approx(expected, rel=1e-4)
    assert {key for key in losses if 'moe' in key} == {'loss_moe_mutual_cls', 'loss_moe_mutual_reg'}


@pytest.mark.parametrize('changes', [{}, {'unit': 'image'}, {'unit': 'patch', 'grid': 2}, {'placement': 'tower'}])
def test_outputs_are_those_without_and_the_loss_trains_experts_alone(changes):
    plain = spread_weights(head({**MOE, **changes})).train()
    model = head({**MOE, **changes, 'distillation': MUTUAL}).train()
    model.load_state_dict(plain.state_dict())
    expected, losses = head_losses(plain, pyramid()), head_losses(model, pyramid())
    for key, value in expected.items():
        torch.testing.assert_close(losses[key], value)
    losses['loss_moe_mutual_cls'].backward()
    grads = {name: p.grad.abs().sum() for name, p in model.named_parameters() if p.grad is not None}
    trained = {name for name, grad in grads.items() if grad > 0}
    assert trained and all(name.startswith('branch_experts.cls.') and 'predictor' not in name for name in trained)
    assert not model.branch_experts['cls'].kept  # no graph is held
    found = model.eval()(tuple(pyramid()))
    for ours, theirs in zip(found[0], plain.eval()(tuple(pyramid()))[0], strict=True):
        assert torch.equal(ours, theirs)


def test_equal_experts_have_no_loss():
    model = spread_weights(head(dict(**MOE, distillation=MUTUAL))).train()
    for group in model.branch_experts.values():
        for expert in group.experts[1:]:
            expert.load_state_dict(group.experts[0].state_dict())
    losses = head_losses(model, pyramid())
    assert losses['loss_moe_mutual_cls'].item() == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(
    ('moe', 'message'),
    [
        (dict(top_k=1, distillation=MUTUAL), 'moe.top_k=1: MutualDistillation needs two experts of a row'),
        (dict(distillation=dict(type='Mutual')), "moe.distillation: unknown type 'Mutual'.*MutualDistillation"),
        (dict(distillation='x'), "moe.distillation: unknown type 'x'"),
        (dict(distillation=dict(type='DenseTeacher', weight=-1)), 'DenseTeacher: weight=-1: expected a number >= 0'),
        (dict(distillation={**MUTUAL, 'wight': 1}), 'moe.distillation: MutualDistillation: .*wight'),
        (dict(placement='last', distillation=MUTUAL), "moe.placement='last'.*'branch' and 'tower'"),
        (dict(mixes='kernels', distillation=MUTUAL), "moe.mixes='kernels': MutualDistillation needs mixes='outputs'"),
        (dict(gate=dict(type='AttentiveGate'), distillation=MUTUAL), 'moe.distillation: AttentiveGate runs'),
    ],
)
def test_what_cannot_learn_from_each_other_is_one_message(moe, message):
    with pytest.raises(MoEConfigError, match=message):
        head({**MOE, **moe})


# -- dense teacher -----------------------------------------------------------------------------------------------


def test_teacher_losses_by_hand():
    student = ([torch.zeros(1, 2, 1, 2)], [torch.ones(1, 4, 1, 2)])
    teacher = (
        [torch.full((1, 2, 1, 2), math.log(3))],
        [torch.tensor([3.0, 1.0, 1.0, 1.0]).view(1, 4, 1, 1).expand(1, 4, 1, 2)],
    )
    distillation = DenseTeacher(weight=2.0)
    distillation.teach = lambda maps: teacher
    counted, positive = [torch.ones(1, 1, 2, dtype=torch.bool)], [torch.tensor([[[True, False]]])]
    losses = distillation.losses([], student, counted, positive)
    divergence = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    assert losses['cls'].item() == pytest.approx(2 * divergence)
    assert losses['reg'].item() == pytest.approx(2 * 4 / 4)


def test_the_teacher_mixes_all_experts_of_the_averaged_head():
    model = spread_weights(head(MOE)).train()
    soft = head(dict(num_experts=4, top_k=4, soft_mixture=True))
    soft.load_state_dict({k: v for k, v in model.state_dict().items() if 'experts_and_k' not in k}, strict=False)
    found, expected = teacher_of(model)(pyramid()), soft.eval()(tuple(pyramid()))
    for of_branch, wanted in zip(found, expected, strict=True):
        for ours, theirs in zip(of_branch, wanted, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
            assert not ours.requires_grad
    assert all(router.intervention is None for router in find_routers(model).values())


def test_a_hook_gives_the_head_its_teacher_and_a_student_of_all_experts_has_learned():
    model = detector({**MOE, 'distillation': dict(type='DenseTeacher')})
    with pytest.raises(MoEConfigError, match="no teacher: add dict.type='DenseTeacherHook'"):
        losses_of(model, batch())
    hook = DenseTeacherHook(momentum=0.1)
    hook.before_run(types.SimpleNamespace(model=model, hooks=[hook], logger=None))
    losses = losses_of(model, batch())
    assert losses['loss_moe_teacher_cls'] > 0 and losses['loss_moe_teacher_reg'] > 0
    assert not any('teacher' in key or 'ema' in key for key in model.state_dict())
    model.eval()
    maps = model.extract_feat(model.data_preprocessor(batch(), False)['inputs'])
    with intervene(model, {name: Intervention(top_k=4) for name in find_routers(model)}), torch.no_grad():
        dense = model.bbox_head(maps)
    everywhere = [torch.ones(len(x), *x.shape[2:], dtype=torch.bool) for x in dense[0]]
    for value in model.bbox_head.distillation.losses(maps, dense, everywhere, everywhere).values():
        assert value.item() == pytest.approx(0, abs=1e-6)


def test_in_a_run_the_teacher_starts_at_the_weights_and_follows_them(tmp_path):
    model, hook, losses = detector({**MOE, 'distillation': dict(type='DenseTeacher')}), DenseTeacherHook(), Losses()
    runner = make_runner(model, tmp_path / 'run', hook, losses, epochs=1)
    seen = []

    def note(*_) -> None:
        pairs = zip(hook.ema_model.module.parameters(), model.parameters(), strict=True)
        seen.append(sum(float((ours - theirs).detach().square().sum()) for ours, theirs in pairs))

    model.register_forward_pre_hook(note)
    runner.train()
    assert seen[0] == 0 and all(step['loss_moe_teacher_cls'] > 0 for step in losses.steps)
    averaged = [float(p.detach().sum()) for p in hook.ema_model.module.bbox_head.parameters()]
    assert averaged != [float(p.detach().sum()) for p in model.bbox_head.parameters()]


def test_a_hook_without_a_head_that_learns_is_one_message():
    with pytest.raises(MoEConfigError, match='DenseTeacherHook is in the config, but the head'):
        hook = DenseTeacherHook()
        hook.before_run(types.SimpleNamespace(model=detector(MOE), hooks=[hook], logger=None))
