"""Every config builds, trains a step and predicts when made small; what a config says it differs in is all it does."""

from __future__ import annotations

import math
import types
from pathlib import Path

import pytest
import torch
from mmdet.registry import HOOKS
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.runner import load_checkpoint
from small_models import (
    REPOSITORY,
    RETINANET,
    assert_same_detections,
    batch,
    build,
    config,
    config_differences,
    config_file,
    initialise,
    losses_of,
    mmdet_scope,
    predictions_of,
    shrink,
    spread_weights,
)
from torch import nn

from moe_det.common.config_file import read_config
from moe_det.routing import find_routers

CONFIGS = REPOSITORY / 'configs'
ENTRIES = sorted(
    str(path.relative_to(CONFIGS)) for folder in (CONFIGS, CONFIGS / 'shapes') for path in folder.glob('*.py')
)
SOFT = 'retinanet_moe_soft.py'
KERNELS = 'retinanet_moe_from_dense.py'
SHARDS = 'retinanet_moe_shards_from_dense.py'
DENSE = {'shapes/retinanet_dense.py', 'shapes/kinds_dense.py'}
DISTILLED = ('retinanet_moe_distilled.py', 'shapes/retinanet_moe_distilled.py')  # need a trained attentive run
# of detectors that were trained before
MIXTURES = ('retinanet_mixture_of_detectors.py', 'shapes/mixture_of_detectors.py')
OTHER_DETECTORS = ('shapes/dino_moe.py', 'shapes/faster_rcnn_moe.py')  # small as they are
OWN_LOSSES = {  # of configs that end so
    'consistent.py': ('consistency',),
    'mutual.py': ('mutual_cls', 'mutual_reg'),
    'teacher.py': ('teacher_cls', 'teacher_reg'),
}
RUNTIME_HOOKS = ['MoEHook', 'ExactResumeHook', 'SkipBadImagesHook', 'FiniteHook']


def entry(name: str) -> Config:
    """One of the configs."""
    return config_file(CONFIGS / name)


def attach_hooks(cfg: Config, model: nn.Module) -> None:
    """Builds the config's custom hooks and lets them see the model, as a run does before it starts."""
    for settings in cfg.get('custom_hooks', []):
        with mmdet_scope():
            HOOKS.build(settings).before_run(types.SimpleNamespace(model=model))


def test_the_list_of_configs_is_complete():
    assert len(ENTRIES) >= 13 and {SOFT, 'retinanet_moe_hard.py', 'shapes/retinanet_moe_soft.py'} <= set(ENTRIES)


@pytest.mark.parametrize('name', [name for name in ENTRIES if name not in OTHER_DETECTORS + MIXTURES])
def test_config_trains_a_step_and_predicts(name, tmp_path):
    narrow = 'fine_grained' in name  # a quarter of the channels, which a group norm divides
    cfg = shrink(entry(name), channels=32 if narrow else 16)
    if name.endswith('multilinear.py'):  # a layer this small has no room for the gate of more
        cfg.model.experts[0].num_experts = 4
    torch.manual_seed(0)
    model = initialise(build(cfg.model))
    spread_weights(model.bbox_head)  # at the small weights of initialisation a step is lost to rounding
    if name in DISTILLED:
        source = spread_weights(initialise(build(shrink(entry(name.replace('distilled', 'attentive'))).model)))
        torch.save(dict(state_dict=source.state_dict()), tmp_path / 'attentive.pth')
        load_checkpoint(model, str(tmp_path / 'attentive.pth'), map_location='cpu')
    attach_hooks(cfg, model)
    routers = find_routers(model)
    assert bool(routers) == (name not in DENSE)
    for mask in (c for r in routers.values() for c in r.constraints.values() if c.key == 'cluster'):
        mask.fill(torch.rand(mask.centroids.shape))

    losses = losses_of(model, batch())
    soft = [r for r in routers.values() if any(hasattr(c, 'weight') for c in r.constraints.values())]
    own = {f'loss_moe_{key}' for key in OWN_LOSSES.get(name.rpartition('_')[2], ())}
    assert own <= set(losses) and sum('moe' in key for key in losses) == len(soft) + len(own)
    assert all(torch.isfinite(loss).all() for loss in losses.values())

    with mmdet_scope():
        optim_wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    trainable = {key for key, parameter in model.named_parameters() if parameter.requires_grad}
    logged = model.train_step(batch(), optim_wrapper)
    assert all(math.isfinite(value.item()) for value in logged.values())
    changed = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    frozen = {key for key, _ in model.named_parameters()} - trainable
    assert changed & trainable and not changed & frozen
    for path, router in routers.items():
        assert any(p is model.get_parameter(key) for p in router.gate.parameters() for key in changed & trainable), path
    predictors = {key for key in changed if 'predictor' in key or 'retina_' in key}
    assert not predictors if name in DISTILLED else predictors

    for found in predictions_of(model, batch()):
        assert len(found) > 0 and torch.isfinite(found.bboxes).all()


@pytest.mark.parametrize('name', MIXTURES)
def test_mixtures_of_detectors_train_their_gate_and_predict(name, tmp_path):
    cfg = entry(name)
    for number, detector in enumerate(cfg.model.detectors):
        model = shrink(read_config(detector.config)).model
        file = tmp_path / f'{number}.pth'
        torch.save(dict(state_dict=spread_weights(build(model)).state_dict()), file)
        cfg.model.detectors[number] = dict(model=model.to_dict(), checkpoint=str(file))
    model = initialise(build(cfg.model))
    attach_hooks(cfg, model)
    with mmdet_scope():
        optim_wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    logged = model.train_step(batch(), optim_wrapper)
    assert all(math.isfinite(value.item()) for value in logged.values())
    changed = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    assert changed == {key for key in before if '.gate.' in key}
    for found in predictions_of(model, batch()):
        assert len(found) > 0 and torch.isfinite(found.bboxes).all()


@pytest.mark.parametrize('name', OTHER_DETECTORS)
def test_other_detectors_train_a_step_and_predict(name):
    cfg = entry(name)
    torch.manual_seed(0)
    model = initialise(build(cfg.model))
    attach_hooks(cfg, model)
    losses = losses_of(model, batch())
    assert losses['loss_moe_kl'].requires_grad and all(torch.isfinite(loss).all() for loss in losses.values())
    with mmdet_scope():
        optim_wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    gates = {path: router.gate.fc.weight.clone() for path, router in find_routers(model).items()}
    model.train_step(batch(), optim_wrapper)
    assert len(gates) == (3 if 'dino' in name else 2)
    assert all(not torch.equal(find_routers(model)[path].gate.fc.weight, before) for path, before in gates.items())
    for found in predictions_of(model, batch()):
        assert torch.isfinite(found.bboxes).all()


@pytest.mark.parametrize('folder', ['', 'shapes/'])
def test_soft_and_hard_differ_in_one_key(folder):
    soft, hard = (entry(f'{folder}retinanet_moe_{kind}.py') for kind in ('soft', 'hard'))
    changed = config_differences(soft, hard)
    assert changed and all(path.startswith('model.bbox_head.moe.constraint.') for path in changed), changed
    assert soft.model.bbox_head.moe.constraint.type == 'KLConstraint'
    assert hard.model.bbox_head.moe.constraint.to_dict() == dict(type='RelativeImportanceConstraint', threshold=0.3)


@pytest.mark.parametrize(
    'name, base, paths',
    [
        (SOFT, None, {'model.bbox_head.type', 'model.bbox_head.moe', 'custom_imports', 'custom_hooks'}),
        ('retinanet_moe_backbone_soft.py', None, {'model.backbone.type', 'model.backbone.moe', 'custom_'}),
        ('retinanet_moe_backbone_hard.py', 'retinanet_moe_backbone_soft.py', {'model.backbone.moe.constraint'}),
        ('retinanet_moe_top1.py', SOFT, {'model.bbox_head.moe.top_k'}),
        ('retinanet_moe_cls_only.py', SOFT, {'model.bbox_head.moe.branches'}),
        ('retinanet_moe_box_only.py', SOFT, {'model.bbox_head.moe.branches'}),
        ('retinanet_moe_importance.py', SOFT, {'model.bbox_head.moe.constraint'}),
        ('retinanet_moe_mean_hard.py', SOFT, {'model.bbox_head.moe.constraint'}),
        (KERNELS, None, {'model.bbox_head.', 'model.backbone.init_cfg', 'load_from', 'custom_'}),
        (SHARDS, None, {'model.bbox_head.', 'model.backbone.init_cfg', 'load_from', 'optim_wrapper.', 'custom_'}),
        ('shapes/retinanet_moe_soft.py', 'shapes/retinanet_dense.py', {'model.bbox_head', 'custom_hooks'}),
        ('retinanet_moe_multilinear.py', None, {'model.type', 'model.detector', 'model.experts', 'custom_'}),
        ('retinanet_moe_fine_grained.py', None, {'model.bbox_head.type', 'model.bbox_head.moe', 'custom_'}),
        ('retinanet_moe_expert_choice.py', None, {'model.bbox_head.type', 'model.bbox_head.moe', 'custom_'}),
    ],
)
def test_configs_differ_from_their_base_as_they_say(name, base, paths):
    plain = entry(base) if base else config(f"_base_ = '{RETINANET}'")
    changed = config_differences(entry(name), plain)
    assert changed and all(path.startswith(tuple(paths)) for path in changed), changed


def test_published_setting_of_the_soft_config():
    # arXiv 2204.10598: four experts, two active, KL weight 0.25, pooled linear gate, each a complete head
    moe = entry(SOFT).model.bbox_head.moe
    assert (moe.num_experts, moe.top_k, moe.placement, moe.unit, moe.balance_over) == (4, 2, 'branch', 'level', 'all')
    assert moe.constraint.weight == 0.25 and moe.gate.type == 'GAPLinearGate'


@pytest.mark.parametrize('name', DISTILLED)
def test_distillation_starts_from_the_run_of_its_base(name):
    distilled, attentive = entry(name), entry(name.replace('distilled', 'attentive'))
    moe = distilled.model.bbox_head.moe
    assert moe.gate.teacher == attentive.model.bbox_head.moe.gate and moe.get('constraint') is None
    run = f'work_dirs/retinanet_moe_attentive/epoch_{attentive.train_cfg.max_epochs}.pth'
    assert distilled.load_from == run and distilled.data_root == attentive.data_root
    paths = ('model.', 'load_from', 'optim_wrapper', 'train_cfg', 'param_scheduler')
    assert all(path.startswith(paths) for path in config_differences(distilled, attentive))


def write(folder: Path, text: str) -> Config:
    """A user's config file."""
    (folder / 'mine.py').write_text(text)
    return Config.fromfile(folder / 'mine.py')


@pytest.mark.parametrize('fragment, constraint', [('soft', 'KLConstraint'), ('hard', 'RelativeImportanceConstraint')])
def test_fragments_serve_a_config_of_the_users_own(tmp_path, fragment, constraint):
    cfg = write(
        tmp_path,
        f"_base_ = ['{RETINANET}', '{CONFIGS}/_base_/moe/{fragment}.py']\n"
        "model = dict(bbox_head=dict(type='MoERetinaHead', moe=_base_.moe))\n",
    )
    assert cfg.custom_imports.imports == ['moe_det']
    assert [hook.type for hook in cfg.custom_hooks] == RUNTIME_HOOKS
    model = build(shrink(cfg).model)
    routers = find_routers(model)
    assert sorted(routers) == ['bbox_head.cls', 'bbox_head.reg']
    for router in routers.values():
        assert (router.num_experts, router.top_k) == (4, 2)
        assert [type(c).__name__ for c in router.constraints.values()] == [constraint]


PROJECT = """
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

@HOOKS.register_module(force=True)
class HookOfMyProject(Hook):
    pass
"""


def test_a_child_extends_imports_and_hooks_as_the_comment_says(tmp_path, monkeypatch):
    (tmp_path / 'my_project_for_moe.py').write_text(PROJECT)
    monkeypatch.syspath_prepend(tmp_path)
    runtime = (CONFIGS / '_base_' / 'moe' / 'runtime.py').read_text()
    comments = [line[1:].strip() for line in runtime.splitlines() if line.startswith('#')]
    lines = [line for line in comments if line.startswith(('custom_imports = ', 'custom_hooks = '))]
    assert len(lines) == 2
    text = '\n'.join(lines).replace('my_project', 'my_project_for_moe').replace('MyHook', 'HookOfMyProject')
    cfg = write(tmp_path, f"_base_ = '{CONFIGS}/retinanet_moe_backbone_soft.py'\n{text}\n")
    assert cfg.custom_imports.imports == ['moe_det', 'my_project_for_moe']
    assert [hook.type for hook in cfg.custom_hooks] == [*RUNTIME_HOOKS, 'HookOfMyProject']
    model = initialise(build(shrink(cfg).model))
    attach_hooks(cfg, model)
    assert 'loss_moe_kl' in losses_of(model, batch())


def trained_retinanet(folder: Path) -> tuple[nn.Module, str]:
    """A small plain RetinaNet and its checkpoint."""
    plain = initialise(build(shrink(config(f"_base_ = '{RETINANET}'")).model))
    spread_weights(plain.bbox_head)
    torch.save(dict(state_dict=plain.state_dict()), folder / 'dense.pth')
    return plain, str(folder / 'dense.pth')


def test_copies_of_a_trained_retinanet_train_on_a_frozen_body(tmp_path):
    cfg = shrink(entry('retinanet_moe_soft_from_dense.py'))
    plain, checkpoint = trained_retinanet(tmp_path)
    model = initialise(build(cfg.model))
    load_checkpoint(model, checkpoint, map_location='cpu')
    for branch, name in (('cls', 'retina_cls'), ('reg', 'retina_reg')):
        dense = plain.bbox_head.get_submodule(name).weight
        for expert in model.bbox_head.branch_experts[branch].experts:
            assert ((expert.predictor.weight - dense).std() / dense.std()).item() == pytest.approx(0.02, rel=0.1)
    body = {key for key in plain.state_dict() if not key.startswith('bbox_head.')}
    assert all(torch.equal(model.state_dict()[key], plain.state_dict()[key]) for key in body)
    assert all(p.requires_grad == key.startswith('bbox_head.') for key, p in model.named_parameters())
    with mmdet_scope():
        optim_wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    model.train()
    model.train_step(batch(), optim_wrapper)
    assert all(torch.equal(model.state_dict()[key], plain.state_dict()[key]) for key in body)
    # the published schedule: Adam 1e-5, batch 4, 20 epochs with drops after 13 and 17, gradients clipped at 0.1
    assert isinstance(optim_wrapper.optimizer, torch.optim.Adam)
    assert optim_wrapper.optimizer.defaults['lr'] == 1e-5 and optim_wrapper.clip_grad_kwargs['max_norm'] == 0.1
    assert cfg.train_dataloader.batch_size == 4 and cfg.train_cfg.max_epochs == 20
    assert [list(s.milestones) for s in cfg.param_scheduler] == [[13, 17]]


@pytest.mark.parametrize(('name', 'slots'), [(KERNELS, 1), (SHARDS, 2)])
def test_mixtures_at_dense_cost_start_with_the_detections_of_a_trained_retinanet(tmp_path, name, slots):
    plain, checkpoint = trained_retinanet(tmp_path)
    cfg = shrink(entry(name))
    cfg.model.bbox_head.moe.copy_noise = 0
    model = initialise(build(cfg.model))
    load_checkpoint(model, checkpoint, map_location='cpu')
    for ours, theirs in zip(predictions_of(model, batch()), predictions_of(plain, batch()), strict=True):
        assert_same_detections(ours, theirs)
    experts = {r.num_experts for r in find_routers(model).values()}
    assert experts == {8} and {r.slots for r in find_routers(model).values()} == {slots}


def test_gates_and_copies_have_learning_rates_of_their_own():
    cfg = shrink(entry(SHARDS))
    rates = {'.routers.': 0.5, '.experts.': 0.3}
    for part, factor in rates.items():
        cfg.optim_wrapper.paramwise_cfg.custom_keys[part].lr_mult = factor
    model = build(cfg.model)
    with mmdet_scope():
        groups = build_optim_wrapper(model, cfg.optim_wrapper).optimizer.param_groups
    found = {id(p): group['lr'] / cfg.optim_wrapper.optimizer.lr for group in groups for p in group['params']}
    head = [(name, p) for name, p in model.named_parameters() if p.requires_grad and name.startswith('bbox_head.')]
    by_rate = {f: {name.split('.')[1] for name, p in head if found[id(p)] == pytest.approx(f)} for f in (1, 0.5, 0.3)}
    assert by_rate == {1: {'cls_convs', 'reg_convs', 'branch_experts'}, 0.5: {'routers'}, 0.3: {'branch_experts'}}
    # what the copies have in common learns at the full rate
    common = [name for name, p in head if 'branch_experts' in name and found[id(p)] == 1]
    assert common and all('.common.' in name for name in common)
