"""MoEHook in runs of mmengine: auxiliary losses, scalars, warnings and tables."""

from __future__ import annotations

import logging
import math
import types

import pytest
import torch
import torch.distributed as dist
from mmengine.hooks import LoggerHook
from mmengine.logging import MessageHub
from mmengine.model import MMDistributedDataParallel
from mmengine.optim import OptimWrapper
from mmengine.registry import DefaultScope
from small_files import plant_logits
from small_models import batch, detector, losses_of, predictions_of
from small_runs import IMAGES, Collect, Losses, hooks_of, make_runner, scalars_of
from torch import nn

from moe_det.errors import MoEConfigError, UncollectedConstraintError
from moe_det.hooks.moe_hook import MoEHook
from moe_det.routing import RoutingRecorder, find_routers
from moe_det.routing.collection import attach_collection

FOUR = dict(num_experts=4, top_k=2)
KL = dict(type='KLConstraint', weight=0.25)


def backbone_moe(**moe) -> nn.Module:
    """A dense head on a backbone with experts in stage 4."""
    settings = dict(stages=(4,), **{**FOUR, 'constraint': KL, **moe})
    return detector(backbone=dict(type='MoEResNet', moe=settings))


COLLAPSED = (50.0, 50.0, 0.0, 0.0)  # logits: every row chooses experts 0 and 1, half and half


def collapses(runner) -> list[logging.LogRecord]:
    """What a training writes to the log about a collapse."""
    log = Collect()
    runner.logger.addHandler(log)
    runner.train()
    return [record for record in log.records if 'collapsed' in record.getMessage()]


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
    """A run with experts in the backbone and in both branches of the head, trained, validated and tested."""
    folder = tmp_path_factory.mktemp('hook') / 'run'
    scopes = dict(DefaultScope._instance_dict)
    settings = dict(stages=(4,), **FOUR, constraint=KL)
    model = detector(
        dict(**FOUR, constraint=KL, gate=dict(type='ConvGAPGate', hidden_channels=4)),
        backbone=dict(type='MoEResNet', moe=settings),
    )
    runner = make_runner(model, folder, dict(type='MoEHook', interval=2), Losses())
    log = Collect()
    runner.logger.addHandler(log)
    runner.train()
    runner.test()
    # this fixture outlives a test, so it takes back the runner's default scope itself
    DefaultScope._instance_dict.clear()
    DefaultScope._instance_dict.update(scopes)
    return runner, folder, [record.getMessage() for record in log.records]


LAYERS = ('backbone.layer4', 'bbox_head.cls', 'bbox_head.reg')


def test_auxiliary_losses_are_part_of_the_objective(finished):
    runner, _, _ = finished
    steps = hooks_of(runner, Losses).steps
    assert len(steps) == 4
    for step in steps:
        parts = {'loss_cls', 'loss_bbox', 'loss_moe_kl', 'loss_moe_kl_cls', 'loss_moe_kl_reg'}
        assert set(step) == {'loss', *parts}
        assert step['loss'] == pytest.approx(sum(step[key] for key in parts), rel=1e-5)


def test_scalars_reach_hub_and_backend(finished):
    runner, folder, _ = finished
    names = {
        f'moe_{kind}/{layer}'
        for kind in ('load_ratio_max', 'load_ratio_min', 'living_experts', 'gate_entropy')
        for layer in LAYERS
    }
    hub = {key for key in runner.message_hub.log_scalars if 'moe' in key and 'loss' not in key}
    of_validation = {name.replace('moe_', 'moe_val_') for name in names}
    assert hub == {f'train/{name}' for name in names} | {f'val/{name}' for name in of_validation}
    training = [line for line in scalars_of(folder) if 'loss' in line]
    assert len(training) == 4 and not any('moe_' in key and 'loss' not in key for key in training[0])
    for line in training[1:]:
        assert names <= line.keys()
        for layer in LAYERS:
            low, high = line[f'moe_load_ratio_min/{layer}'], line[f'moe_load_ratio_max/{layer}']
            # two of four experts per row: the ratio of one expert is at most 4 / 2
            assert 0 <= low <= 1 <= high <= 2
            assert 2 <= line[f'moe_living_experts/{layer}'] <= 4
            assert 0 <= line[f'moe_gate_entropy/{layer}'] <= 2 + 1e-6
    entropy = [line['moe_gate_entropy/bbox_head.cls'] for line in training[1:]]
    assert entropy[0] == entropy[1] != entropy[2]  # measured after the second and the fourth iteration


def test_a_validation_writes_its_scalars(tmp_path):
    model = detector(dict(**FOUR, branches='cls', noise=False))
    runner = make_runner(model, tmp_path / 'run', dict(type='MoEHook'))
    runner.train()
    (line,) = [line for line in scalars_of(tmp_path / 'run') if 'loss' not in line]
    used = hooks_of(runner, MoEHook).utilisation['bbox_head.cls']
    assert line['moe_val_load_ratio_max/bbox_head.cls'] == pytest.approx(max(used.load_ratio))
    assert line['moe_val_gate_entropy/bbox_head.cls'] == pytest.approx(used.row_entropy)
    assert not any(key.startswith('moe_load') for key in line)


@pytest.mark.parametrize(('interval', 'logged'), [(1, {0, 1}), (2, {1})])
def test_without_an_interval_the_loggers_counts(tmp_path, interval, logged):
    runner = make_runner(detector(dict(**FOUR)), tmp_path / 'run', dict(type='MoEHook'), epochs=1)
    hooks_of(runner, LoggerHook).interval = interval
    iterations = set()
    update = runner.message_hub.update_scalar
    runner.message_hub.update_scalar = lambda key, *args, **kwargs: (
        iterations.add(runner.iter) if key.startswith('train/moe_load') else None,
        update(key, *args, **kwargs),
    )
    runner.train()
    assert iterations == logged


def test_validation_and_test_end_with_a_table(finished):
    runner, _, lines = finished
    tables = [line for line in lines if line.startswith('Expert utilisation')]
    assert len(tables) == 2  # one validation, one test
    for layer in LAYERS:
        assert all(sum(row.startswith(layer) for row in table.splitlines()) == 1 for table in tables)
    measured = hooks_of(runner, MoEHook).utilisation
    assert measured['backbone.layer4'].rows == IMAGES
    assert measured['bbox_head.cls'].rows == IMAGES * 5
    for used in measured.values():
        assert sum(used.importance_share) == pytest.approx(1)
        assert sum(used.load_ratio) == pytest.approx(4)
    assert all(not router.decided for router in find_routers(runner.model).values())


def test_a_process_without_images_takes_part_in_the_sums(monkeypatch):
    model = detector(dict(**FOUR))
    hook = MoEHook()
    runner = types.SimpleNamespace(model=model, logger=logging.getLogger('test'), message_hub=MessageHub('test'))
    hook.before_run(runner)
    shapes = []

    def validate(images: bool, others: float) -> list[tuple]:
        def all_reduce(sums: torch.Tensor) -> None:
            shapes.append(tuple(sums.shape))
            sums += others  # what the other processes have

        monkeypatch.setattr('moe_det.hooks.moe_hook.all_reduce', all_reduce)
        shapes.clear()
        hook.before_val_epoch(runner)
        if images:
            predictions_of(model, batch())
        hook.after_val_epoch(runner)
        return list(shapes)

    # the same sums in the same order, or the processes would wait for each other for ever
    with_images = validate(images=True, others=0.0)
    assert {used.rows for used in hook.utilisation.values()} == {10}
    assert validate(images=False, others=4.0) == with_images
    assert {used.rows for used in hook.utilisation.values()} == {4}
    validate(images=False, others=0.0)
    assert hook.utilisation == {}


def test_hook_attaches_once(finished):
    runner, _, _ = finished
    assert len(runner.model._forward_hooks) == len(runner.model._forward_pre_hooks) == 1


def test_hook_loss_is_the_constraint_of_the_recorded_rows():
    model = backbone_moe(constraint=dict(type='KLConstraint', weight=3.0), noise=False)
    with torch.no_grad():
        model.backbone.layer4.router.gate.fc.bias.copy_(torch.tensor([2.0, 1.0, 0.0, -1.0]))
    attach_collection(model)
    with RoutingRecorder(model) as recorder:
        recorder.start_batch([1, 2])
        losses = losses_of(model, batch())
    (record,) = recorder.records
    share = (record.weights.sum(0) / record.weights.sum()).tolist()
    expected = 3.0 * sum(p * math.log(p * 4) for p in share if p > 0)
    assert expected > 0.1
    assert losses['loss_moe_kl'].item() == pytest.approx(expected, rel=1e-5)


def test_planted_collapse_is_warned_of_once(tmp_path):
    model = detector(dict(**FOUR, branches='reg'))
    plant_logits(model, *COLLAPSED)
    runner = make_runner(model, tmp_path / 'run', dict(type='MoEHook', interval=2), epochs=3)
    (warning,) = collapses(runner)
    text = warning.getMessage()
    assert warning.levelname == 'WARNING'
    assert text.startswith('bbox_head.reg: routing has collapsed: 2 of 4 experts') and '2.00, 2.00, 0.00, 0.00' in text
    for line in scalars_of(tmp_path):
        if 'moe_load_ratio_max/bbox_head.reg' in line:
            assert line['moe_load_ratio_max/bbox_head.reg'] == pytest.approx(2)
            assert line['moe_load_ratio_min/bbox_head.reg'] == 0
            assert line['moe_living_experts/bbox_head.reg'] == 2
            assert line['moe_gate_entropy/bbox_head.reg'] == pytest.approx(1, abs=1e-3)  # bits: two alike
    share = hooks_of(runner, MoEHook).utilisation['bbox_head.reg'].importance_share
    assert share == pytest.approx((0.5, 0.5, 0, 0), abs=1e-3)


@pytest.mark.parametrize(('strength', 'warned'), [(50.0, True), (1.0, False)])
def test_a_soft_gate_that_is_saturated_has_collapsed(tmp_path, strength, warned):
    # every row has all four experts, and the check of a checkpoint calls a single living one a collapse
    model = detector(dict(num_experts=4, top_k=4, soft_mixture=True, branches='cls', noise=False))
    plant_logits(model, strength, 0, 0, 0)
    runner = make_runner(model, tmp_path / 'run', dict(type='MoEHook', interval=2))
    texts = [record.getMessage().split(' hold')[0] for record in collapses(runner)]
    assert texts == ['bbox_head.cls: routing has collapsed: 1 of 4 experts'] * warned


def test_a_shard_with_one_living_copy_is_warned_of(tmp_path):
    shards = dict(placement='shards', shards=2, copies=3, branches='cls', constraint=KL, noise=False)
    model = detector(shards)
    gate = model.bbox_head.routers['cls'].gate.fc
    with torch.no_grad():  # the first shard is used as a gate by chance uses it, the second has copy 2 alone
        gate.weight[:3] = torch.randn(3, gate.weight.shape[1], generator=torch.Generator().manual_seed(0)) * 50
        gate.weight[3:] = 0
        gate.bias.copy_(torch.tensor([0.0, 0, 0, 0, 0, 50]))
    runner = make_runner(model, tmp_path / 'run', dict(type='MoEHook', interval=2))
    (text,) = [record.getMessage() for record in collapses(runner)]
    assert text.startswith('bbox_head.cls: routing has collapsed: 1 of 3 copies of shard 1 hold more than 1 %')
    used = hooks_of(runner, MoEHook).utilisation['bbox_head.cls']
    first, second = used.importance_share[:3], used.importance_share[3:]
    assert second == pytest.approx((0, 0, 0.5)) and sum(first) == pytest.approx(0.5)
    assert used.living == 1 + sum(share > 0 for share in first) > 2
    assert 0 <= used.row_entropy <= used.batch_entropy <= math.log2(3)


def test_healthy_gate_is_not_warned_of(finished):
    _, folder, lines = finished
    living = [line['moe_living_experts/bbox_head.cls'] for line in scalars_of(folder) if 'moe_living' in str(line)]
    assert living and min(living) > 2
    assert not any('collapsed' in line for line in lines)


def test_a_few_rows_are_not_called_a_collapse(tmp_path):
    model = backbone_moe(constraint=None)
    plant_logits(model, *COLLAPSED)
    runner = make_runner(model, tmp_path / 'run', dict(type='MoEHook', interval=1), epochs=1)
    assert not collapses(runner)  # two images an iteration: two rows


def test_many_layers_are_summed_up(tmp_path):
    settings = dict(stages=(1, 2, 3, 4), **FOUR)
    model = detector(dict(**FOUR), backbone=dict(type='MoEResNet', moe=settings, frozen_stages=-1))
    plant_logits(model.backbone.layer2, *COLLAPSED)
    runner = make_runner(model, tmp_path / 'run', dict(type='MoEHook', interval=1), epochs=1)
    runner.train()
    line = [line for line in scalars_of(tmp_path) if 'loss' in line][0]
    keys = {key for key in line if 'moe' in key}
    assert keys == {'moe_load_ratio_max', 'moe_load_ratio_min', 'moe_living_experts', 'moe_gate_entropy'}
    assert line['moe_load_ratio_max'] == pytest.approx(2) and line['moe_load_ratio_min'] == 0
    assert line['moe_living_experts'] == 2


def test_experts_of_a_frozen_stage_are_named(tmp_path):
    settings = dict(stages=(1, 4), **FOUR)
    model = detector(dict(**FOUR), backbone=dict(type='MoEResNet', moe=settings, frozen_stages=1))
    runner = make_runner(model, tmp_path / 'run', dict(type='MoEHook'), epochs=1)
    log = Collect()
    runner.logger.addHandler(log)
    runner.train()
    named = [record.getMessage() for record in log.records if ': frozen' in record.getMessage()]
    assert len(named) == 1 and named[0].startswith('backbone.layer1: frozen, as backbone.frozen_stages does')


def test_a_config_without_experts_is_refused(tmp_path):
    runner = make_runner(detector(), tmp_path / 'run', dict(type='MoEHook'))
    with pytest.raises(MoEConfigError, match='MoEHook is in the config, but the config builds no MoE layer'):
        runner.train()


def test_a_forgotten_hook_stops_the_first_step(tmp_path):
    runner = make_runner(backbone_moe(), tmp_path / 'run', Losses())
    with pytest.raises(UncollectedConstraintError, match=r'backbone\.moe \(stage 4\): KLConstraint .*MoEHook'):
        runner.train()
    assert hooks_of(runner, Losses).steps == []


def test_a_head_alone_needs_no_hook(tmp_path):
    runner = make_runner(detector(dict(**FOUR, constraint=KL)), tmp_path / 'run', Losses(), epochs=1)
    runner.train()
    assert all('loss_moe_kl_cls' in step for step in hooks_of(runner, Losses).steps)


@pytest.mark.parametrize('interval', [0, -1, 1.5, True, '50'])
def test_interval_is_checked(interval):
    with pytest.raises(MoEConfigError, match=r'MoEHook\.interval='):
        MoEHook(interval=interval)


@pytest.fixture
def one_process_group(tmp_path):
    """A process group of this process alone."""
    dist.init_process_group('gloo', init_method=f'file://{tmp_path}/store', rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize('constraint', [KL, dict(type='RelativeImportanceConstraint', threshold=0.0)])
def test_data_parallel_without_unused_parameters(one_process_group, constraint):
    model = detector(
        dict(**FOUR, constraint=constraint),
        backbone=dict(type='MoEResNet', moe=dict(stages=(4,), **FOUR, constraint=constraint)),
    )
    plant_logits(model, *COLLAPSED)  # experts 2 and 3 are idle, later steps of the hard constraint mask others
    wrapped = MMDistributedDataParallel(model, find_unused_parameters=False)
    hook = MoEHook(interval=1)
    runner = types.SimpleNamespace(model=wrapped)
    hook.before_run(runner)
    hook.before_run(runner)
    assert len(model._forward_hooks) == 1 and len(wrapped._forward_hooks) == 0
    optim_wrapper = OptimWrapper(torch.optim.SGD(model.parameters(), lr=1e-3))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for _ in range(3):
        losses = wrapped.train_step(batch(), optim_wrapper)
        assert ('loss_moe_kl' in losses) == (constraint is KL)
        assert math.isfinite(losses['loss'].item())
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert {name for name in before if '.gate.' in name} <= changed
