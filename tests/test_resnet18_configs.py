"""The configs of ResNet-18 on CIFAR: each trains a step and predicts when made small; schedules and settings."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import PARAM_SCHEDULERS
from small_models import REPOSITORY, build, config_file, initialise, mmdet_scope
from torch import nn

from moe_det.routing import find_routers

CONFIGS = REPOSITORY / 'configs' / 'classification'
NAMES = sorted(path.stem for path in CONFIGS.glob('resnet18_*.py'))
VARIANTS = {'moe_soft', 'moe_importance', 'moe_relative', 'moe_mean', 'dense'}
WITHOUT_LOSS = ('relative', 'mean', 'multilinear', 'expert_choice')  # hard constraints, or none
CONSTRAINTS = {
    'moe_soft': dict(type='KLConstraint', weight=0.5),
    'moe_importance': dict(type='ImportanceConstraint', weight=0.5),
    'moe_relative': dict(type='RelativeImportanceConstraint', threshold=0.5),
    'moe_mean': dict(type='MeanImportanceConstraint', threshold=0.3),
}


def entry(name: str) -> Config:
    """One of the configs."""
    return config_file(CONFIGS / f'{name}.py')


def small(cfg: Config, **moe) -> nn.Module:
    """The model with 8 base channels."""
    cfg.model.backbone.base_channels = 8
    if moe:
        cfg.model.backbone.moe.update(moe)
    torch.manual_seed(0)
    return initialise(build(cfg.model))


def batch(classes: int, count: int = 8) -> dict:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 3, 32, 32), generator=generator, dtype=torch.uint8)
    return dict(inputs=images, labels=torch.randint(0, classes, (count,), generator=generator))


def test_the_list_of_configs_is_complete():
    assert {f'resnet18_{v}_{data}' for v in VARIANTS for data in ('cifar10', 'cifar100')} <= set(NAMES)


@pytest.mark.parametrize('name', NAMES)
def test_config_trains_a_step_and_predicts(name):
    cfg = entry(name)
    classes = 10 if name.endswith('cifar10') else 100
    assert cfg.model.num_classes == classes
    model = small(cfg)
    routers = find_routers(model)
    soft = name.split('_')[1] == 'moe' and not any(word in name for word in WITHOUT_LOSS)
    with mmdet_scope():
        optim_wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    assert isinstance(optim_wrapper.optimizer, torch.optim.Adam)
    assert {group['weight_decay'] for group in optim_wrapper.optimizer.param_groups} == {0}
    model.train()
    before = {key: value.clone() for key, value in model.named_parameters()}
    logged = model.train_step(batch(classes), optim_wrapper)
    assert sum('loss_moe' in key for key in logged) == (1 if soft else 0)
    assert all(math.isfinite(value.item()) for value in logged.values())
    still = {key for key, value in model.named_parameters() if torch.equal(value, before[key])}
    # experts that no image chose, and no other part, stay as they are
    assert all('.expert_group.experts.' in key for key in still)
    if routers:
        assert not any(key.endswith('gate.fc.weight') for key in still)
        assert all((router.noise is not None) == soft for router in routers.values())
    model.eval()
    with torch.no_grad():
        (predicted,) = model.test_step(batch(classes))
    assert predicted['probs'].shape == (8, classes)
    torch.testing.assert_close(predicted['probs'].sum(1), torch.ones(8))
    deciding = {path for path, router in routers.items() if router.unit != 'patch'}
    assert set(predicted['gates']) == deciding and bool(routers) == ('moe' in name)


@pytest.mark.parametrize('variant', sorted(CONSTRAINTS))
@pytest.mark.parametrize('data', ['cifar10', 'cifar100'])
def test_settings_of_the_paper(variant, data):
    cfg = entry(f'resnet18_{variant}_{data}')
    moe = cfg.model.backbone.moe.to_dict()
    assert moe.pop('constraint') == CONSTRAINTS[variant]
    assert moe == dict(stages=(4,), num_experts=4, top_k=2, residual=False, gate=dict(type='GAPLinearGate'))
    assert cfg.train_dataloader.batch_size == 128 and cfg.train_cfg.max_epochs == 150
    augment = cfg.train_dataloader.dataset.augment.to_dict()
    assert augment == dict(flip=0.5, jitter=(0.3, 0.3, 0.3), padding=4)
    assert 'augment' not in cfg.test_dataloader.dataset and cfg.test_dataloader.dataset.split == 'test'


@pytest.mark.parametrize(
    'options, stage, experts, residual',
    [
        (['model.backbone.moe.num_experts=10'], 4, 10, False),
        (['model.backbone.moe.stages=[3]'], 3, 4, False),
        (['model.backbone.moe.residual=True', 'model.backbone.moe.stages=[1]'], 1, 4, True),
    ],
)
def test_documented_variants_are_options(options, stage, experts, residual):
    from moe_det.running.launch import load_config

    model = small(load_config(CONFIGS / 'resnet18_moe_soft_cifar100.py', options))
    (path,) = find_routers(model)
    assert path == f'backbone.layer{stage}'
    layer = model.get_submodule(path)
    assert len(layer.expert_group) == experts and (layer.skip is not None) == residual


def test_single_convolution_and_its_stem_variant():
    cfg = entry('resnet18_moe_single_conv_cifar100')
    (path,) = find_routers(small(cfg))
    assert path == 'backbone.layer4.1.conv2'
    model = small(entry('resnet18_moe_single_conv_cifar100'), convs=['stem'])
    assert list(find_routers(model)) == ['backbone.conv1'] and len(model.backbone.conv1.expert_group) == 10


def rates(name: str) -> list[float]:
    """Learning rate of every epoch of a config, as mmengine's schedulers give it."""
    cfg = entry(name)
    parameter = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.Adam([parameter], lr=cfg.optim_wrapper.optimizer.lr)
    schedulers = [PARAM_SCHEDULERS.build(dict(copy.deepcopy(s), optimizer=optimizer)) for s in cfg.param_scheduler]
    found = []
    for _ in range(cfg.train_cfg.max_epochs):
        found.append(optimizer.param_groups[0]['lr'])
        optimizer.step()
        for scheduler in schedulers:
            scheduler.step()
    return found


@pytest.mark.parametrize(
    'names, epochs, drops',
    [
        ([f'resnet18_{v}_{d}' for v in CONSTRAINTS for d in ('cifar10', 'cifar100')], 150, (80, 120)),
        (['resnet18_dense_cifar10', 'resnet18_dense_cifar100'], 150, (60, 100)),
        (['resnet18_moe_single_conv_cifar100'], 180, (100, 150)),
    ],
)
def test_learning_rates_drop_at_the_papers_epochs(names, epochs, drops):
    first, second = drops
    expected = [1e-3] * first + [1e-4] * (second - first) + [1e-5] * (epochs - second)
    for name in names:
        assert rates(name) == pytest.approx(expected, rel=1e-9), name


def test_conv_gap_runs_warm_up_for_twenty_epochs():
    found = rates('resnet18_moe_conv_gap_cifar100')
    assert found[:20] == pytest.approx([1e-4 + 4.5e-5 * epoch for epoch in range(20)])
    assert found[20:] == pytest.approx([1e-3] * 60 + [1e-4] * 40 + [1e-5] * 30)
