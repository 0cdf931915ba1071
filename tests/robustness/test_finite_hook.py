"""NaN and infinity planted into gates, losses and gradients stop a run before the weights change."""

from __future__ import annotations

import copy
import types
from pathlib import Path

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapper
from small_models import batch, detector
from small_runs import IMAGES, make_runner
from torch.utils._python_dispatch import TorchDispatchMode

from moe_det.errors import MoEConfigError, NonFiniteError
from moe_det.robustness.finite_hook import FiniteHook
from moe_det.robustness.non_finite import describe_images, first_bad_layer, flag_of_gradients
from moe_det.routing import find_routers

KL = dict(num_experts=4, top_k=2, constraint=dict(type='KLConstraint', weight=0.25), gate=dict(type='GAPLinearGate'))
SAVE = dict(type='CheckpointHook', interval=1, by_epoch=False, save_param_scheduler=False)
NAN, INF = float('nan'), float('inf')


class At(Hook):
    """Does something before an iteration (counted from 0), and keeps a copy of the weights from before it."""

    priority = 'LOWEST'

    def __init__(self, iteration: int, plant) -> None:
        self.iteration, self.plant = iteration, plant
        self.before: dict | None = None

    def before_train_iter(self, runner, batch_idx, data_batch=None) -> None:
        if runner.iter == self.iteration:
            self.plant(runner, data_batch)
            self.before = copy.deepcopy(runner.model.state_dict())


def stopped(tmp_path: Path, plant, iteration: int = 2, wrapper=None) -> str:
    """Trains with a plant; returns the message. Weights and checkpoints are those from before the iteration."""
    hook = At(iteration, plant)
    runner = make_runner(detector(KL), tmp_path / 'run', hook, FiniteHook(), SAVE, dict(type='MoEHook'))
    if wrapper is not None:
        runner.optim_wrapper = wrapper(runner)
    with pytest.raises(NonFiniteError) as caught:
        runner.train()
    assert same_weights(runner, hook)
    saved = sorted(path.name for path in Path(runner.work_dir).glob('*.pth'))
    assert saved == [f'iter_{number}.pth' for number in range(1, iteration + 1)]
    return str(caught.value)


def same_weights(runner, hook: At) -> bool:
    now = runner.model.state_dict()
    parameters = [name for name, _ in runner.model.named_parameters()]
    return all(torch.equal(now[name].nan_to_num(7), hook.before[name].nan_to_num(7)) for name in parameters)


def spoil_gate(runner, data) -> None:
    with torch.no_grad():
        find_routers(runner.model)['bbox_head.cls'].gate.fc.bias[1] = NAN


def test_a_gate_logit_stops_the_run_in_its_iteration_with_layer_images_and_checkpoint(tmp_path):
    text = stopped(tmp_path, spoil_gate)
    assert text.startswith('iteration 3 (epoch 2)')
    assert 'gate logits of bbox_head.cls (10 of 10 rows)' in text  # two images on five levels
    assert 'bbox_head.reg' not in text
    assert 'images: id 0, id 1' in text
    assert 'weights of bbox_head.routers.cls.gate.fc.bias, already before this step' in text
    assert 'iter_2.pth' in text


def test_a_loss_names_its_part_and_the_first_layer_that_fails(tmp_path):
    def spoil(runner, data) -> None:
        data['inputs'][1] = data['inputs'][1].float() * NAN

    text = stopped(tmp_path, spoil)
    assert text.startswith('iteration 3') and 'loss_cls=nan' in text and 'loss_bbox=nan' in text
    assert 'the first layer with such an output is backbone.conv1 (Conv2d)' in text


def test_a_gradient_names_its_parameter(tmp_path):
    def spoil(runner, data) -> None:
        weight = runner.model.neck.lateral_convs[0].conv.weight
        weight.register_hook(lambda gradient: gradient * INF)

    text = stopped(tmp_path, spoil)
    assert 'gradients of neck.lateral_convs.0.conv.weight' in text and 'loss_' not in text


def test_a_constraints_own_loss_is_watched(tmp_path, monkeypatch):
    def spoil(runner, data) -> None:
        constraint = find_routers(runner.model)['bbox_head.reg'].constraints['kl']
        compute = constraint.loss
        monkeypatch.setattr(constraint, 'loss', lambda routing: compute(routing) * INF)

    text = stopped(tmp_path, spoil)
    assert 'loss_moe_kl_reg=inf' in text or 'loss_moe_kl_reg=nan' in text


def test_iterations_between_the_steps_of_gradient_accumulation_are_checked(tmp_path):
    def wrapper(runner):
        optimizer = torch.optim.SGD(runner.model.parameters(), lr=1e-4)
        return OptimWrapper(optimizer, accumulative_counts=4)

    text = stopped(tmp_path, spoil_gate, iteration=1, wrapper=wrapper)
    assert text.startswith('iteration 2') and 'bbox_head.cls' in text


class ScaledWrapper(OptimWrapper):
    """fp16's loss scaling on a CPU, with the order of calls of mmengine's AmpOptimWrapper."""

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.loss_scaler = torch.amp.GradScaler('cpu', init_scale=4.0)

    def backward(self, loss, **kwargs) -> None:
        self.loss_scaler.scale(loss).backward(**kwargs)
        self._inner_count += 1

    def step(self, **kwargs) -> None:
        if self.clip_grad_kwargs:
            self.loss_scaler.unscale_(self.optimizer)
            self._clip_grad()
        self.loss_scaler.step(self.optimizer)
        self.loss_scaler.update()


# the scaler steps a fused optimizer also where a gradient overflowed, and leaves it to the kernel to skip
CLIP = dict(clip_grad=dict(max_norm=35))
OPTIMIZERS = [dict(), CLIP, dict(fused=True), dict(fused=True, **CLIP)]


def scaled_run(tmp_path, plant, hook: FiniteHook, epochs: int = 3, fused: bool = False, clip_grad: dict | None = None):
    model = detector(KL)
    at = At(2, plant)
    runner = make_runner(model, tmp_path / 'run', at, hook, dict(type='MoEHook'), epochs=epochs)
    try:
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, fused=fused or None)
    except RuntimeError as error:  # torch before 2.4, on a CPU
        pytest.skip(str(error))
    runner.optim_wrapper = ScaledWrapper(optimizer, clip_grad=clip_grad)
    return runner, at


def overflow(once: bool):
    def plant(runner, data) -> None:
        weight = runner.model.neck.lateral_convs[0].conv.weight
        handle = weight.register_hook(lambda gradient: (once and handle.remove(), gradient * INF)[1])

    return plant


@pytest.mark.parametrize('optimizer', OPTIMIZERS, ids=str)
def test_a_step_that_the_loss_scaler_skips_stops_nothing(tmp_path, optimizer):
    class Kept(Hook):
        def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
            kept.append(same_weights(runner, at) if at.before else None)

    kept: list[bool | None] = []
    runner, at = scaled_run(tmp_path, overflow(once=True), FiniteHook(), **optimizer)
    runner.register_hook(Kept())
    runner.train()
    assert runner.iter == 6 and runner.optim_wrapper.loss_scaler.get_scale() == 2.0  # halved once
    assert kept == [None, None, True, False, False, False]  # only the third step was left out


@pytest.mark.parametrize('optimizer', OPTIMIZERS[::3], ids=str)
def test_a_loss_scaler_that_skips_every_step_stops_the_run(tmp_path, optimizer):
    runner, _ = scaled_run(tmp_path, overflow(once=False), FiniteHook(max_skipped_steps=3), **optimizer)
    with pytest.raises(NonFiniteError, match='iteration 5: .* skipped the step of 3 iterations in a row'):
        runner.train()


@pytest.mark.parametrize('optimizer', OPTIMIZERS[::3], ids=str)
def test_a_bad_loss_stops_the_run_under_a_loss_scaler_too(tmp_path, optimizer):
    runner, _ = scaled_run(tmp_path, spoil_gate, FiniteHook(), **optimizer)
    with pytest.raises(NonFiniteError, match='iteration 3'):
        runner.train()


class HostCopies(TorchDispatchMode):
    """Counts reads of a device's values from Python."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function is torch.ops.aten._local_scalar_dense.default
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize('scaled', [False, True])
def test_a_good_step_costs_one_copy_to_the_host(tmp_path, monkeypatch, scaled):
    counts = []
    check = FiniteHook._check

    def counted(self, *flags) -> bool:
        with HostCopies() as copies:
            steps = check(self, *flags)
        counts.append(copies.count)
        return steps

    monkeypatch.setattr(FiniteHook, '_check', counted)
    if scaled:
        runner, _ = scaled_run(tmp_path, lambda *_: None, FiniteHook(), epochs=2, fused=True)
    else:
        runner = make_runner(detector(KL), tmp_path / 'run', FiniteHook(), dict(type='MoEHook'))
    runner.train()
    assert counts == [1] * 4
    hook = next(hook for hook in runner.hooks if isinstance(hook, FiniteHook))
    assert hook._handles == [] and hook._inputs is None  # nothing of the last step is kept


def test_a_detector_without_experts_is_watched_too(tmp_path):
    def spoil(runner, data) -> None:
        data['inputs'][0] = data['inputs'][0].float() * INF

    runner = make_runner(detector(), tmp_path / 'run', At(0, spoil), FiniteHook())
    with pytest.raises(NonFiniteError, match='iteration 1'):
        runner.train()


def test_validation_and_test_watch_the_gates(tmp_path):
    runner = make_runner(detector(KL), tmp_path / 'run', FiniteHook())
    with torch.no_grad():
        find_routers(runner.model)['bbox_head.reg'].gate.fc.weight.fill_(INF)
    with pytest.raises(NonFiniteError, match='test, batch 1: .*bbox_head.reg; images: id 0, id 1') as caught:
        runner.test()
    assert 'fc.weight' in str(caught.value)
    runner = make_runner(detector(KL), tmp_path / 'good', FiniteHook())
    assert runner.val() == dict(count=IMAGES)


@pytest.mark.parametrize('value', [NAN, INF, -INF])
@pytest.mark.parametrize('dtype', [torch.float32, torch.float16, torch.bfloat16])
def test_the_flag_of_gradients(value, dtype):
    good = [torch.full((3, 4), 6e4, dtype=dtype), None, torch.zeros(0, dtype=dtype), torch.tensor(-1e30)]
    assert flag_of_gradients(good).item() is True
    assert flag_of_gradients([]).item() is True and flag_of_gradients([None]).item() is True
    bad = torch.ones(3, 4, dtype=dtype)
    bad[1, 2] = value
    assert flag_of_gradients([*good, bad]).item() is False
    sparse = torch.sparse_coo_tensor([[0]], [value], (4,))
    assert flag_of_gradients([sparse]).item() is False


def test_the_search_for_a_layer_leaves_the_model_as_it_was():
    model = detector(KL).train()
    data = model.data_preprocessor(batch(), training=True)
    before = copy.deepcopy(model.state_dict())
    assert first_bad_layer(model, (), dict(data, mode='loss')) is None
    with torch.no_grad():
        model.neck.fpn_convs[0].conv.weight.fill_(NAN)
    assert first_bad_layer(model, (), dict(data, mode='loss')) == 'neck.fpn_convs.0.conv (Conv2d)'
    after = model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items() if not name.startswith('neck.fpn'))


def test_images_are_named_as_far_as_they_are_known():
    sample = types.SimpleNamespace(img_id=7, img_path='a/b.jpg')
    assert describe_images(((), dict(data_samples=[sample, types.SimpleNamespace(img_id=8)]))) == 'id 7 (a/b.jpg), id 8'
    assert 'PackDetInputs' in describe_images(((torch.zeros(1),), {})) and 'not known' in describe_images(None)


def test_settings_are_checked():
    with pytest.raises(MoEConfigError, match='max_skipped_steps=0'):
        FiniteHook(max_skipped_steps=0)
