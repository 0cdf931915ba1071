"""The project on torch's own device type ``cuda``, without a GPU: the same numbers as on the CPU, and no needless wait.

Every case runs on the CPU and on the pretended GPU, each in a process of its own; two more processes share a training.
They are started once, side by side. ``pretended_gpu.py`` says what the pretended GPU is, and what it cannot show.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from device import head_cases, model_cases, self_cases, start
from mmengine.structures import InstanceData
from running.detector_runs import free_port
from small_models import assert_same_detections

from moe_det.compat.ops import ops_source
from moe_det.models.head_settings import PLACEMENTS
from moe_det.registry import CONSTRAINTS, GATES, REGISTERED
from moe_det.routing.rows import UNITS

HERE = Path(__file__).parent
TIME = 600  # seconds, of a machine that is busy with other things

COPY = 'moe_det/routing/dispatch.py copy_to_host: copy to the host'
FLAGS = 'moe_det/robustness/finite_hook.py _check: value'
# torchvision's NMS for mmcv's, which waits too, once per image
NMS = {'moe_det/compat/kernels.py nms: value': 2}
RUNS_EVERY_EXPERT = ('every expert', 'attentive', 'distilled')


@pytest.fixture(scope='module')
def folder(tmp_path_factory) -> Path:
    """Where the processes left what they computed."""
    reason = start.why_not()
    if reason is None and ops_source() == 'compiled':
        reason = "the pretended GPU cannot run mmcv's compiled operators"
    if reason is not None:
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp('device')
    pretended, port = start.environment(), free_port()
    commands = [(['device_check.py', 'cpu', folder], {**pretended, 'LD_PRELOAD': '', 'CUDA_VISIBLE_DEVICES': ''})]
    commands.append((['start.py', HERE / 'device_check.py', 'cuda', folder], pretended))
    commands += [(['start.py', HERE / 'rank_worker.py', rank, port, folder], pretended) for rank in (0, 1)]
    logs = [folder / f'process_{number}.log' for number in range(len(commands))]
    started = []
    try:
        for ((script, *arguments), environment), log in zip(commands, logs, strict=True):
            command = [sys.executable, str(HERE / script), *map(str, arguments)]
            with log.open('w') as file:
                started.append(subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=environment))
        for process, log in zip(started, logs, strict=True):
            assert process.wait(TIME) == 0, log.read_text()[-3000:]
    finally:
        for process in started:
            process.kill()
    return folder


@pytest.fixture(scope='module')
def both(folder) -> tuple[dict, dict]:
    """What the cases computed on the CPU and on the pretended GPU."""
    return torch.load(folder / 'cpu.pt'), torch.load(folder / 'cuda.pt')


def assert_close(actual: torch.Tensor, expected: torch.Tensor, name: str) -> None:
    """Equal to 1e-6 of the tensor's largest number, or of 1."""
    scale = max(1.0, float(expected.double().abs().max())) if expected.numel() else 1.0
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-6 * scale, msg=lambda text: f'{name}: {text}')


def assert_same(actual: dict, expected: dict) -> None:
    """The same numbers by name; detections may change places where scores are equal."""
    assert actual.keys() == expected.keys() and expected
    images = sorted({name.rpartition(' ')[0] for name in expected if name.startswith('image ')})
    for image in images:
        found, wanted = (
            InstanceData(bboxes=of[f'{image} boxes'], scores=of[f'{image} scores'], labels=of[f'{image} labels'])
            for of in (actual, expected)
        )
        assert_same_detections(found, wanted, score=1e-6, pixels=1e-4)
    for name, value in expected.items():
        if not name.startswith('image '):
            assert value.isfinite().all(), name
            assert_close(actual[name], value, name)


def part(values: dict, prefix: str) -> dict:
    return {name.removeprefix(f'{prefix} '): value for name, value in values.items() if name.startswith(f'{prefix} ')}


# -- the same numbers ----------------------------------------------------------------------------------------------

SAME = [
    *head_cases.CASES,
    *model_cases.CASES,
    'run: training',
    'run: one process',
    'run: size tool',
    'run: resumed',
]


@pytest.mark.parametrize('case', SAME)
def test_numbers_are_those_of_the_cpu(both, case):
    cpu, cuda = (of[case] for of in both)
    assert cpu['error'] is None, cpu['error']
    assert cuda['error'] is None, cuda['error']
    assert_same(cuda['values'], cpu['values'])


@pytest.mark.parametrize('case', [case for case in SAME if case.startswith(('head', 'detector', 'run: tr'))])
def test_experts_and_gates_learn(both, case):
    values = both[1][case]['values']
    before, after = part(values, 'start'), part(values, 'end')
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert any('gate' in name for name in moved)
    assert any('expert' in name for name in moved) or case == 'head: distilled'  # which freezes them


def test_heads_have_every_placement_unit_gate_and_constraint():
    heads = list(head_cases.HEADS.values())
    assert {moe.get('placement', 'branch') for moe in heads} == set(PLACEMENTS)
    assert {moe.get('unit', 'level') for moe in heads} == set(UNITS)
    gates = {moe['gate']['type'] if 'gate' in moe else 'GAPLinearGate' for moe in heads}
    assert gates | {'ConvNetGate'} == {path.partition(':')[2] for path in REGISTERED[GATES]}  # of the classifiers
    constraints = {
        constraint['type']
        for moe in heads
        for found in [moe.get('constraint', [])]
        for constraint in (found if isinstance(found, list) else [found])
    }
    # clusters are of a backbone's features, and a head has none
    assert constraints | {'ClusterMask'} == {path.partition(':')[2] for path in REGISTERED[CONSTRAINTS]}


# -- waits of the host ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize('name', head_cases.HEADS)
def test_a_head_waits_once(both, name):
    waits = both[1][f'head: {name}']['waits']
    assert waits['step'] == ({} if name in RUNS_EVERY_EXPERT else {COPY: 1})
    # a distilled head decides by its plain gate
    assert waits['predict'] == ({**NMS} if name in ('every expert', 'attentive') else {COPY: 1, **NMS})


@pytest.mark.parametrize(
    ('name', 'step', 'predict'),
    [
        ('MoEResNet, stage', 1, 1),
        ('MoEResNet, convolution', 2, 1),  # checkpointed: the backward runs the forward again
        ('MoEBlock', 3, 3),  # three blocks
        ('MoEConv2d', 10, 10),  # in two towers, on five levels: each call decides for itself
    ],
)
def test_layers_wait_once_per_call(both, name, step, predict):
    waits = both[1][f'detector: {name}']['waits']
    assert waits == {'step': {COPY: step}, 'predict': {COPY: predict, **NMS}}


def test_classifiers_wait_for_dispatch_alone(both):
    for name in model_cases.CLASSIFIERS:
        assert both[1][f'classifier: {name}']['waits'] == {'step': {}, 'predict': {}}, name
    assert both[1]['classifier: ResNet-18']['waits'] == {'step': {COPY: 1}, 'predict': {COPY: 1}}


def test_augmentation_does_not_wait(both):
    assert both[1]['augmentation']['waits'] == {'batch': {}}


@pytest.mark.parametrize('case', ['run: training', 'run: half precision'])
def test_hooks_wait_once_between_logs(both, case):
    # head and backbone; FiniteHook reads all its flags at once, the other hooks read nothing
    assert both[1][case]['waits'] == {'step': {COPY: 2, FLAGS: 1}}


def test_copies_to_the_device(both):
    # for two routers, the noise of each and the order of the rows of both
    copies = both[1]['head: branch']['copies']
    assert copies['step'] == {'moe_det/routing/noise.py draw': 2, 'moe_det/routing/dispatch.py plan_dispatch': 1}


# -- checkpoints, half precision, two processes ----------------------------------------------------------------------


@pytest.mark.parametrize('device', ['cpu', 'cuda'])
def test_a_run_goes_on_on_the_other_device(both, device):
    results = dict(zip(('cpu', 'cuda'), both, strict=True))
    other = 'cuda' if device == 'cpu' else 'cpu'
    whole = part(results[other]['run: training']['values'], 'end')
    assert_same(part(results[device]['run: resumed']['values'], 'end'), whole)


def test_checkpoints_of_the_device_lie_on_the_cpu(folder):
    # this process has no such device: a tensor that lies there could not be loaded
    checkpoint = torch.load(folder / 'cuda' / 'training' / 'epoch_1.pth', weights_only=False)
    assert len(checkpoint['state_dict']) > 50 and checkpoint['optimizer']['state']


def test_half_precision_skips_an_overflow_and_goes_on(both):
    cpu, cuda = (of['run: half precision'] for of in both)
    assert cuda['error'] is None, cuda['error']
    values = cuda['values']
    # the first step's scale of 2^60 overflows: weights stay, and the scale falls to 2^10, where it remains
    assert values['scaler scale'] == 2.0**10
    start, first, end = (part(values, prefix) for prefix in ('start', 'after step 0', 'end'))
    assert start.keys() == first.keys() and all(torch.equal(start[name], first[name]) for name in start)
    changes = [(end[name] - start[name]).abs().max() for name in start]
    assert all(change.isfinite() for change in changes) and max(changes) > 1e-4
    losses, expected = part(values, 'step 0'), part(cpu['values'], 'step 0')
    assert losses.keys() == expected.keys()
    for name, value in expected.items():
        assert losses[name].dtype == torch.float32
        torch.testing.assert_close(losses[name], value, rtol=2e-2, atol=1e-3, msg=lambda m, name=name: f'{name}: {m}')


@pytest.mark.parametrize('rank', [0, 1])
def test_two_processes_train_what_one_does(folder, both, rank):
    alone = both[0]['run: one process']['values']
    found = torch.load(folder / f'rank{rank}.pt', map_location='cpu')
    for when in ('start', 'end'):
        assert_same(found[when], part(alone, when))


# -- the pretended GPU itself --------------------------------------------------------------------------------------


def test_what_a_gpu_refuses_is_refused(both):
    cpu, cuda = (part(of['self: refusals']['values'], 'raised') for of in both)
    assert set(cpu) == set(cuda) == set(self_cases.REFUSED)
    assert all(cuda.values()) and not any(value for name, value in cpu.items() if name != 'generator')


def test_what_makes_the_host_wait_is_counted(both):
    place = 'tests/device/self_cases.py run_counts'
    found = both[1]['self: counts']
    assert found['error'] is None, found['error']
    waited = {f'{place}: {kind}': 1 for kind in ('value', 'mask', 'copy to the device')}
    assert found['waits'] == {'nothing': {}, 'waits': waited, 'copy': {}}
    assert found['copies'] == {'nothing': {}, 'waits': {}, 'copy': {place: 1}}
