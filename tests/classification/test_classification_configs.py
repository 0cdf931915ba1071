"""Every config of arXiv 2302.14703's rows builds, trains a step and predicts; rows differ in what they name alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from small_models import config_differences, config_file, mmdet_scope

from moe_det.routing.router import find_routers

CONFIGS = Path(__file__).resolve().parents[2] / 'configs' / 'classification'
DATA = ('mnist', 'fashion_mnist', 'cifar10', 'cifar100')
ROWS = (
    'single',
    *(f'{gate}{extra}' for gate in ('original', 'attentive') for extra in ('', '_importance', '_similarity')),
    'distilled_importance',
    'distilled_similarity',
)
LEARN = {'single': {'expert_group'}, 'distilled': {'router'}}  # by the first word of a row; others: both
EXPERTS = {'mnist': 5, 'fashion_mnist': 5, 'cifar10': 5, 'cifar100': 20}


def entry(name: str) -> Config:
    return config_file(CONFIGS / f'{name}.py')


def differences(first: str, second: str) -> set[str]:
    return config_differences(entry(first), entry(second))


def test_there_is_a_config_for_every_row():
    expected = {f'{data}_{row}' for data in DATA for row in ROWS} | {'mnist_vae', 'fashion_mnist_vae'}
    assert {path.stem for path in CONFIGS.glob('*.py') if not path.stem.startswith('resnet18_')} == expected


@pytest.mark.parametrize('name', ['mnist_vae', 'fashion_mnist_vae'])
def test_autoencoder_trains_a_step_and_predicts(name):
    cfg = entry(name)
    assert cfg.train_dataloader.batch_size == 128
    assert (cfg.train_cfg.max_epochs, cfg.optim_wrapper.optimizer.lr) == (20, 1e-3)
    assert cfg.train_dataloader.dataset.name == cfg.test_dataloader.dataset.name
    with mmdet_scope():
        model = MODELS.build(cfg.model).train()
        wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    batch = dict(inputs=torch.randint(0, 256, (4, 1, 28, 28), dtype=torch.uint8), labels=torch.arange(4))
    logged = model.train_step(batch, wrapper)
    assert {'loss_reconstruction', 'loss_kl', 'loss_moe_usage_entropy'} < set(logged)
    (found,) = model.eval().test_step(batch)
    assert found['errors'].shape == (4,) and found['errors'].isfinite().all()


@pytest.mark.parametrize('row', ROWS)
@pytest.mark.parametrize('data', DATA)
def test_config_trains_a_step_and_predicts(data, row):
    cfg = entry(f'{data}_{row}')
    expected = 1 if row == 'single' else EXPERTS[data]
    assert cfg.model.moe.num_experts == expected == cfg.model.moe.top_k
    if data.startswith('cifar'):  # gates of millions of weights: narrower here
        for net in (*gates_of(cfg.model.moe.gate), cfg.model.expert):
            net.channels = tuple(max(1, channels // 16) for channels in net.channels)
            net.hidden = (16, *net.hidden[1:])
    torch.manual_seed(0)
    with mmdet_scope():
        model = MODELS.build(cfg.model).train()
        wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    classes, channels = (100 if data == 'cifar100' else 10), cfg.model.expert.in_channels
    size = cfg.model.expert.image_size
    batch = dict(
        inputs=torch.randint(0, 256, (4, channels, size, size), dtype=torch.uint8), labels=torch.arange(4) % classes
    )
    if row.startswith('distilled'):
        model.router.gate.has_trained_teacher = True
    before = {key: value.clone() for key, value in model.state_dict().items()}
    logged = model.train_step(batch, wrapper)
    wanted = {'loss', 'loss_cls', 'error'}
    for kind in ('importance', 'similarity'):
        wanted |= {f'loss_moe_{kind}'} if row.endswith(kind) and not row.startswith('distilled') else set()
    assert set(logged) == wanted and all(torch.isfinite(value) for value in logged.values())
    changed = {key.split('.')[0] for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    assert changed == LEARN.get(row.partition('_')[0], {'expert_group', 'router'})
    model.eval()
    with torch.no_grad():
        (found,) = model.test_step(batch)
    assert found['probs'].shape == (4, classes) and torch.allclose(found['probs'].sum(1), torch.ones(4), atol=1e-4)
    assert bool(found['gates']) == (row != 'single') and all(r.noise is None for r in find_routers(model).values())


def gates_of(gate: dict) -> list[dict]:
    """The networks in a gate's config."""
    if gate.type == 'ConvNetGate':
        return [gate]
    return [net for key in ('query', 'teacher', 'student') if key in gate for net in gates_of(gate[key])]


@pytest.mark.parametrize('data', DATA)
def test_rows_differ_as_they_say(data):
    moe = 'model.moe.'
    for gate in ('original', 'attentive'):
        for kind in ('importance', 'similarity'):
            changed = differences(f'{data}_{gate}', f'{data}_{gate}_{kind}')
            assert changed and all(path.startswith(f'{moe}constraint.') for path in changed), changed
    changed = differences(f'{data}_original', f'{data}_attentive')
    assert changed and all(path.startswith(f'{moe}gate') for path in changed), changed
    assert differences(f'{data}_original', f'{data}_single') == {f'{moe}num_experts', f'{moe}top_k'}
    for kind in ('importance', 'similarity'):
        cfg, source = entry(f'{data}_distilled_{kind}'), entry(f'{data}_attentive_{kind}')
        epochs = source.train_cfg.max_epochs
        assert cfg.load_from == f'work_dirs/{data}_attentive_{kind}/epoch_{epochs}.pth'
        assert cfg.model.moe.gate.teacher == source.model.moe.gate and cfg.model.moe.gate.kl_weight == 0
        assert cfg.model.moe.gate.student == entry(f'{data}_original').model.moe.gate
        assert cfg.model.moe.get('constraint') is None


@pytest.mark.parametrize(
    ('data', 'batch_size', 'epochs', 'weights'),
    [
        ('mnist', 512, 20, (0.2, 0.2)),
        ('fashion_mnist', 512, 20, (0.2, 0.8)),
        ('cifar10', 128, 20, (0.2, 0.8)),
        ('cifar100', 256, 40, (0.2, 0.2)),
    ],
)
def test_published_settings(data, batch_size, epochs, weights):
    cfg = entry(f'{data}_original')
    assert cfg.train_dataloader.batch_size == batch_size and cfg.train_cfg.max_epochs == epochs
    assert cfg.optim_wrapper.optimizer.to_dict() == dict(type='Adam', lr=1e-3) and not cfg.param_scheduler
    for gate, weight in zip(('original', 'attentive'), weights, strict=True):
        constraint = entry(f'{data}_{gate}_importance').model.moe.constraint
        assert (constraint.weight, constraint.dense) == (weight, True)
    assert entry(f'{data}_attentive').model.moe.gate.hidden_channels == (256 if data == 'cifar100' else 32)
    for gate, beta_s in zip(
        ('original', 'attentive'),
        dict(mnist=(1e-6, 1e-6), fashion_mnist=(1e-7, 1e-6), cifar10=(1e-7, 1e-6), cifar100=(1e-4, 1e-4))[data],
        strict=True,
    ):
        constraint = entry(f'{data}_{gate}_similarity').model.moe.constraint
        assert (constraint.beta_s, constraint.distance, constraint.normalisation) == (beta_s, 'inputs', 'published')
        # H_u of the authors' MNIST runs tells that these distances were not divided by the largest
        assert constraint.get('distance_scale', 'largest') == ('none' if 'mnist' in data else 'largest')
