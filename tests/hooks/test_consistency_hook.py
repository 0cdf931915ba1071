"""The consistency loss and the agreement of decisions, with gates that look at planted properties of the image."""

from __future__ import annotations

import types

import moe_det.registry  # noqa: F401 - first: supplies the operators that mmdet's import needs

# isort: split
import pytest
import torch
from mmengine.model import BaseModel
from small_models import batch, detector, losses_of
from small_runs import Losses, make_runner
from torch import Tensor

from moe_det.common.image_changes import read_changes
from moe_det.errors import MoEConfigError
from moe_det.hooks.consistency_hook import RoutingConsistencyHook
from moe_det.layers import MoEConv2d
from moe_det.routing import find_routers
from moe_det.routing.collection import attach_collection
from moe_det.routing.constraint import FORBIDDEN
from moe_det.studies.routing_agreement import agreement_of, agreement_table


class Planted(BaseModel):
    """One layer on the pixels; its gate compares a value of the image with 100.

    Args:
        seen: (N, C, H, W) -> (N,).
    """

    def __init__(self, seen, unit: str = 'level', grid: int | None = None) -> None:
        super().__init__(dict(type='ImgDataPreprocessor', mean=[50.0], std=[10.0]))
        self.layer = MoEConv2d(1, 1, 1, num_experts=2, top_k=1, unit=unit, grid=grid)
        self.norm = torch.nn.BatchNorm2d(1)
        self.scale = self.layer.router.gate.fc.weight  # something to train
        self.layer.router.gate.forward = lambda x, keys=None: self.logits(seen(x * 10 + 50))

    def logits(self, values: Tensor) -> Tensor:
        return torch.stack([values - 100, 100 - values], 1) / 10 + self.scale.sum()

    def forward(self, inputs: Tensor, data_samples=None, mode: str = 'tensor'):
        output = self.layer(self.norm(inputs) * 0 + inputs)
        return dict(loss=output.sum()) if mode == 'loss' else output


def images() -> dict:
    """Bright on the left or on the right, and bright or dark as a whole."""
    left = torch.full((1, 8, 8), 90.0)
    left[:, :, :4] = 180.0
    return dict(inputs=[left, left.flip(2), left * 0.5], data_samples=None)


def mean(x: Tensor) -> Tensor:
    return x.mean((1, 2, 3))


def left_half(x: Tensor) -> Tensor:
    return x[:, :, :, : max(1, x.shape[3] // 2)].mean((1, 2, 3))


def agreement(model: Planted, *changes: str) -> dict[str, float]:
    found = agreement_of(model.eval(), [images()], read_changes(changes, 'changes'))
    assert 'layer' in agreement_table(found)
    return {change: of['layer'].same_best for change, of in found.items()}


def test_a_gate_that_sees_brightness_agrees_under_flip_and_not_under_brightness():
    # means 135, 135, 67.5: 60 less takes the first two below 100
    found = agreement(Planted(mean), 'flip', 'scale:0.5', 'brightness:-60', 'brightness:60')
    assert found == {'flip': 1.0, 'scale:0.5': 1.0, 'brightness:-60': pytest.approx(1 / 3), 'brightness:60': 2 / 3}


def test_a_gate_that_sees_the_left_half_changes_its_mind_under_flip():
    # left halves 180, 90, 90 and of the mirrored images 90, 180, 45
    assert agreement(Planted(left_half), 'flip') == {'flip': pytest.approx(1 / 3)}


def test_patches_are_compared_with_their_mirrored_ones():
    # bright and dark columns of patches change places with the image: matched by place all agree
    assert agreement(Planted(mean, 'patch', 2), 'flip') == {'flip': 1.0}


def test_divergence_and_overlap_by_hand():
    found = agreement_of(Planted(mean).eval(), [images()], read_changes(['brightness:-60'], 'changes'))
    agreed = found['brightness:-60']['layer']
    margins = torch.tensor([7.0, 7.0, -6.5], dtype=torch.float64)  # of the logits, before
    p = torch.stack([margins.sigmoid(), (-margins).sigmoid()])
    after = torch.tensor([-5.0, -5.0, -14.5], dtype=torch.float64)  # the dark half of the last image ends at 0
    q = torch.stack([after.sigmoid(), (-after).sigmoid()])
    assert agreed.overlap == pytest.approx(1 / 3)
    assert agreed.rows == 3 and agreed.divergence == pytest.approx((p * (p / q).log2()).sum(0).mean().item(), rel=1e-3)


def attached(model: Planted, **settings) -> RoutingConsistencyHook:
    hook = RoutingConsistencyHook(**settings)
    hook.before_run(types.SimpleNamespace(model=model))
    return hook


def loss_of(model: Planted) -> dict:
    data = model.train().data_preprocessor(images(), True)
    return model(**data, mode='loss')


def test_the_loss_is_the_divergence_of_the_gates_probabilities():
    model = Planted(mean)
    attached(model, weight=2.0, changes=['brightness:-60'])
    before = {key: value.clone() for key, value in model.state_dict().items() if 'norm' in key}
    loss = loss_of(model)['loss_moe_consistency']
    bits = agreement_of(model.eval(), [images()], read_changes(['brightness:-60'], 'c'))['brightness:-60']['layer']
    assert loss.item() == pytest.approx(2 * bits.divergence * 0.6931472, rel=1e-4)
    # one forward moved the statistics, not two
    twin = Planted(mean)
    loss_of(twin)
    for key, value in twin.state_dict().items():
        if 'norm' in key:
            torch.testing.assert_close(model.state_dict()[key], value)
            assert 'running' not in key or not torch.equal(value, before[key])


def test_a_layer_that_is_called_for_each_level_counts_the_mean_over_its_rows():
    class Twice(Planted):
        def forward(self, inputs, data_samples=None, mode='tensor'):
            super().forward(inputs, data_samples)
            return super().forward(inputs, data_samples, mode)

    losses = []
    for model in (Planted(mean), Twice(mean)):
        attached(model, changes=['brightness:-60'])
        losses.append(loss_of(model)['loss_moe_consistency'].item())
    assert losses[1] == pytest.approx(losses[0]) and losses[0] > 0.1


def test_rows_whose_experts_a_constraint_takes_after_the_change_do_not_count(monkeypatch):
    model = Planted(mean)
    attached(model, changes=['brightness:-60'])
    router, everything = model.layer.router, loss_of(model)['loss_moe_consistency'].item()
    plain = router.gate_logits

    def without_the_first(rows, *args):
        logits = plain(rows, *args)
        if rows[0].mean() < 3:  # after the change
            logits[0, 0] = FORBIDDEN
        return logits

    monkeypatch.setattr(router, 'gate_logits', without_the_first)
    # the first two images are as bright, the third is dark before and after: they share the loss equally
    assert loss_of(model)['loss_moe_consistency'].item() == pytest.approx(everything / 2, rel=0.01)


def test_a_gate_that_agrees_has_no_loss():
    model = Planted(mean)
    attached(model, changes=['flip'])
    assert loss_of(model)['loss_moe_consistency'].item() == pytest.approx(0, abs=1e-6)
    model.eval()
    assert torch.is_tensor(model(torch.zeros(1, 1, 8, 8)))  # nothing is added elsewhere


def test_of_a_detector_only_gates_learn_and_steps_stay_as_they_are():
    moe = dict(num_experts=4, top_k=2, constraint=dict(type='KLConstraint'), balance_over='level')
    plain = detector(moe, backbone=dict(norm_eval=True))
    model = detector(moe, backbone=dict(norm_eval=True))
    model.load_state_dict(plain.state_dict())
    attach_collection(plain), attach_collection(model)
    hook = attached(model, changes=['scale:0.5', 'flip', 'noise:20'])
    torch.manual_seed(0)
    expected = losses_of(plain, batch())
    torch.manual_seed(0)
    losses = losses_of(model, batch())
    assert set(losses) - set(expected) == {'loss_moe_consistency'}
    for key, value in expected.items():
        torch.testing.assert_close(losses[key], value)
    losses['loss_moe_consistency'].backward()
    trained = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert trained and all('.gate.' in name for name in trained)
    assert len(find_routers(model)['bbox_head.cls'].step.calls) == 0
    hook.before_run(types.SimpleNamespace(model=model))  # again: it attaches once
    assert set(losses_of(model, batch())) == set(losses)


def test_a_run_logs_the_loss(tmp_path):
    losses = Losses()
    hook = dict(type='RoutingConsistencyHook', changes=['noise:8'])
    model = detector(dict(num_experts=4, top_k=2, constraint=dict(type='KLConstraint')))
    make_runner(model, tmp_path / 'run', dict(type='MoEHook'), hook, losses, epochs=1).train()
    assert all(step['loss_moe_consistency'] > 0 for step in losses.steps)


def test_wrong_settings_are_one_message():
    with pytest.raises(MoEConfigError, match='RoutingConsistencyHook.weight=-1'):
        RoutingConsistencyHook(-1)
    with pytest.raises(MoEConfigError, match="RoutingConsistencyHook.changes: unknown change 'blur'"):
        RoutingConsistencyHook(changes=['blur:2'])
    with pytest.raises(MoEConfigError, match='RoutingConsistencyHook: .*no layer has a gate'):
        attached(detector())
