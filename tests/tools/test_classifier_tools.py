"""sweep_top_k.py and class_allocation.py on a small CIFAR-10, with planted gates."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from mmdet.registry import MODELS
from mmengine.registry import DefaultScope
from mmengine.runner import Runner
from small_files import CIFAR10_NAMES, moe_config, write_cifar10, write_cifar100
from small_files import checkpoint as planted_checkpoint
from small_models import spread_weights

from moe_det.classification.cifar100_groups import CIFAR100_GROUPS
from moe_det.routing import find_routers
from moe_det.running import launch
from moe_det.running.launch import load_config

pytestmark = pytest.mark.usefixtures('in_tmp_path')  # runs write into the current folder
SWEEP = 'analysis_tools/sweep_top_k.py'
ALLOCATION = 'analysis_tools/class_allocation.py'
CONFIGS = Path(__file__).resolve().parents[2] / 'configs' / 'classification'
DENSE = CONFIGS / 'resnet18_dense_cifar10.py'
SMALL = ['model.backbone.base_channels=8']
LAYER = 'backbone.layer4'
CIFAR100_NAMES = sorted(name for members in CIFAR100_GROUPS.values() for name in members)


@pytest.fixture(scope='module')
def cifar(tmp_path_factory) -> Path:
    """Both data sets: five images per class for CIFAR-10's test, one for CIFAR-100's."""
    root = tmp_path_factory.mktemp('cifar')
    write_cifar10(root, per_class=5)
    write_cifar100(root, as_archive=False, count=100, names=CIFAR100_NAMES)
    # the colour tells the class
    noise = np.random.default_rng(1).integers(-40, 41, (100, 3, 1024))
    pixels = (np.random.default_rng(0).integers(40, 215, (100, 3, 1)) + noise).astype(np.uint8).reshape(100, 3072)
    content = {b'data': pixels, b'fine_labels': list(range(100))}
    (root / 'cifar-100-python' / 'test').write_bytes(pickle.dumps(content, protocol=2))
    return root


def config(constraint: str = 'soft', data: str = 'cifar10') -> str:
    return str(CONFIGS / f'resnet18_moe_{constraint}_{data}.py')


def model_of(config_file: str, options: list[str], root: Path) -> torch.nn.Module:
    """The small model of a config: its gates use all experts, and it knows the test images well with two of them.

    The last layer looks for the nearest of the classes' mean features, so that other numbers of experts err more.
    """
    cfg = load_config(config_file, options, root)
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope('mmdet'):
        model = MODELS.build(cfg.model)
        (batch,) = Runner.build_dataloader(cfg.test_dataloader)
    spread_weights(model)
    model.eval()
    images = model.data_preprocessor(batch)['inputs']
    with torch.no_grad():
        for path, router in find_routers(model).items():
            seen = []
            handle = model.get_submodule(path).register_forward_hook(lambda m, a, o, seen=seen: seen.append(a[0]))
            model(images)
            handle.remove()
            maps = seen[0].mean((2, 3))
            gate = router.gate.fc
            gate.weight.div_((maps @ gate.weight.T).std())
            gate.bias.copy_(-gate.weight @ maps.mean(0))
        features = model.backbone(images)[-1].mean((2, 3))
        means = torch.stack([features[batch['labels'] == c].mean(0) for c in range(10)]) / features.std()
        model.fc.weight.copy_(means)
        model.fc.bias.copy_(-means.square().sum(1) * features.std() / 2)
    return model


def save(model: torch.nn.Module, path: Path) -> str:
    torch.save(dict(state_dict=model.state_dict(), meta={}), path)
    return str(path)


def run(tool, name: str, *arguments: str, options: list[str]) -> int:
    return tool(name).main([*arguments, '--cfg-options', *options])


def sweep(tool, config_file: str, checkpoint: str, root: Path, options: list[str], *more: str) -> dict:
    """Result of the sweep, from its JSON file."""
    status = run(
        tool, SWEEP, config_file, checkpoint, '--data-root', str(root), '--json', 'out/s.json', *more, options=options
    )
    assert status == 0
    return json.loads(Path('out/s.json').read_text())


def test_every_k_of_the_sweep_is_a_plain_test_with_that_k(tool, cifar, capsys):
    checkpoint = save(model_of(config(), SMALL, cifar), Path('m.pth'))
    found = sweep(tool, config(), checkpoint, cifar, SMALL)
    assert found['trained'] == {LAYER: dict(top_k=2, num_experts=4)}
    assert [(r['top_k'], r['trained']) for r in found['results']] == [(1, False), (2, True), (3, False), (4, False)]
    out = capsys.readouterr().out
    errors = [result['metrics']['error'] for result in found['results']]
    assert len(set(errors)) > 2 and errors[1] == min(errors)  # else the comparison could not tell one K from another
    for result in found['results']:
        star = '*' if result['trained'] else ' '
        assert f'{result["top_k"]:4d}{star}{result["metrics"]["error"]:8.4f}' in out
    for k, key in ((1, ['model.test_top_k=1']), (2, []), (4, ['model.test_top_k=4'])):
        plain = launch.test(config(), checkpoint, work_dir='plain', cfg_options=[*SMALL, *key], data_root=str(cifar))
        assert found['results'][k - 1]['metrics'] == pytest.approx(plain, rel=1e-12)


def test_the_sweep_is_what_a_model_built_with_that_k_and_each_best_expert_give(tool, cifar):
    model = model_of(config(), SMALL, cifar)
    checkpoint = save(model, Path('m.pth'))
    results = sweep(tool, config(), checkpoint, cifar, SMALL, '--top-k', '1', '3')['results']
    by_k = {result['top_k']: result['metrics']['error'] for result in results}
    # K = 3: the key top_k itself, which a checkpoint of another K does not fit
    model.backbone.layer4.router.experts_and_k[1] = 3
    options = [*SMALL, 'model.backbone.moe.top_k=3']
    other = save(model, Path('k3.pth'))
    plain = launch.test(config(), other, work_dir='plain', cfg_options=options, data_root=str(cifar))
    assert plain['error'] == by_k[3]
    # K = 1: each image through its best expert alone, with weight 1
    (batch,) = Runner.build_dataloader(load_config(config(), SMALL, cifar).test_dataloader)
    x = model.backbone
    with torch.no_grad():
        images = model.data_preprocessor(batch)['inputs']
        maps = x.layer3(x.layer2(x.layer1(x.relu(x.norm1(x.conv1(images))))))
        experts = x.layer4.router.gate(maps).argmax(1)
        group = x.layer4.expert_group.experts
        outputs = torch.cat([group[e](maps[i : i + 1]) for i, e in enumerate(experts.tolist())])
        wrong = (model.fc(outputs.mean((2, 3))).argmax(1) != batch['labels']).float().mean().item()
    assert len(experts.unique()) > 1 and by_k[1] == pytest.approx(wrong)


def test_chosen_k_and_two_layers_of_different_size(tool, cifar, capsys):
    options = [*SMALL, 'model.backbone.moe.stages=[1,4]']
    checkpoint = save(model_of(config(), options, cifar), Path('m.pth'))
    found = sweep(tool, config(), checkpoint, cifar, options, '--top-k', '4', '1')
    assert [r['top_k'] for r in found['results']] == [4, 1] and len(found['trained']) == 2
    assert 'I_EY/backbone.layer1' in capsys.readouterr().out


def test_wrong_sweeps_are_named(fails, cifar):
    checkpoint = save(model_of(config(), SMALL, cifar), Path('m.pth'))
    root = ['--data-root', cifar]
    text = fails(SWEEP, config(), checkpoint, *root, '--top-k', '5', '--cfg-options', *SMALL)
    assert 'the layers of' in text and 'expected 1 to 4' in text
    assert 'builds no MoE layer' in fails(SWEEP, DENSE, checkpoint, *root, '--cfg-options', *SMALL)
    wide = ['--cfg-options', 'model.backbone.base_channels=16']
    assert 'does not match the config' in fails(SWEEP, config(), checkpoint, *root, *wide)
    assert 'nowhere' in fails(SWEEP, config(), checkpoint, '--data-root', 'nowhere', '--cfg-options', *SMALL)


STEM = [*SMALL, 'model.backbone.moe.stages=[]', 'model.backbone.moe.convs=[stem]', 'model.backbone.moe.num_experts=4']
PLANTED = np.array([[6, 0, 0], [0, 6, 0], [0, 0, 6], [0, 0, 0]])  # an expert each for red, green, blue, and the rest


def plant_colours(options: list[str], config_file: str) -> torch.nn.Module:
    """A model whose gate at the stem follows the mean colour of the normalised image."""
    with DefaultScope.overwrite_default_scope('mmdet'):
        model = MODELS.build(load_config(config_file, options).model)
    gate = model.backbone.conv1.router.gate.fc
    with torch.no_grad():
        gate.weight.copy_(torch.tensor(PLANTED))
        gate.bias.copy_(torch.tensor([0.0, 0.0, 0.0, 0.5]))
    return model


def expected_weights(file: Path, labels_key: str, mean: tuple, std: tuple, classes: int) -> np.ndarray:
    """(K, E) from the original file alone: mean colour, logits, softmax, mean per class."""
    content = pickle.loads(file.read_bytes())
    colours = content[b'data'].reshape(-1, 3, 1024).mean(2) / 255
    logits = (colours - mean) / std @ PLANTED.T + [0, 0, 0, 0.5]
    weights = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    labels = np.array(content[labels_key.encode()])
    return np.stack([weights[labels == c].mean(0) for c in range(classes)])


def allocate(tool, config_file: str, root: Path, capsys, *more: str) -> tuple[dict, str]:
    """The layer's numbers and what was printed."""
    checkpoint = save(plant_colours(STEM, config_file), Path('planted.pth'))
    capsys.readouterr()
    assert run(tool, ALLOCATION, config_file, checkpoint, '--data-root', str(root), *more, options=STEM) == 0
    folder = Path(more[more.index('--out-dir') + 1]) if '--out-dir' in more else Path('planted.allocation')
    (layer,) = json.loads((folder / 'class_allocation.json').read_text())['layers']
    assert layer['layer'] == 'backbone.conv1'
    return layer, capsys.readouterr().out


def test_allocation_of_a_planted_gate_is_that_of_the_colours(tool, cifar, capsys):
    layer, out = allocate(tool, config(), cifar, capsys, '--out-dir', 'found', '--top', '3')
    expected = expected_weights(
        cifar / 'cifar-10-batches-py' / 'test_batch', 'labels', (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616), 10
    )
    np.testing.assert_allclose(layer['weights'], expected, atol=1e-4)
    assert layer['classes'] == list(CIFAR10_NAMES) and layer['samples'] == [5] * 10 and 'groups' not in layer
    assert expected.max(0).min() > 0.5 and expected.std(0).min() > 0.1  # the colours tell the classes apart
    for expert in range(4):
        best = [CIFAR10_NAMES[i] for i in np.argsort(-expected[:, expert])[:3]]
        listed = ', '.join(f'{name} {expected[CIFAR10_NAMES.index(name), expert]:.2f}' for name in best)
        assert f'  expert {expert}: {listed}\n' in out
    assert sorted(path.name for path in Path('found').iterdir()) == [
        'allocation_00_classes.png',
        'class_allocation.json',
    ]


def test_allocation_of_cifar100_has_superclasses(tool, cifar, capsys):
    layer, out = allocate(tool, config('single_conv', 'cifar100'), cifar, capsys)
    expected = expected_weights(
        cifar / 'cifar-100-python' / 'test', 'fine_labels', (0.5071, 0.4865, 0.4409), (0.2009, 0.1984, 0.2023), 100
    )
    np.testing.assert_allclose(layer['weights'], expected, atol=1e-4)
    assert layer['classes'] == list(CIFAR100_NAMES) and len(layer['groups']) == 20
    members = [CIFAR100_NAMES.index(name) for name in ('orchid', 'poppy', 'rose', 'sunflower', 'tulip')]
    np.testing.assert_allclose(layer['groups']['flowers'], expected[members].mean(0), atol=1e-4)
    assert '  flowers' in out
    assert {path.name for path in Path('planted.allocation').glob('*.png')} == {
        'allocation_00_classes.png',
        'allocation_00_superclasses.png',
    }


def test_wrong_allocations_are_named(fails, cifar, tiny_config):
    checkpoint = save(plant_colours(STEM, config()), Path('m.pth'))
    root = ['--data-root', cifar]
    assert 'builds no MoE layer' in fails(ALLOCATION, DENSE, checkpoint, *root, '--cfg-options', *SMALL)
    detector_config = moe_config(tiny_config)
    weights = planted_checkpoint(detector_config, Path('detector.pth'))
    text = fails(ALLOCATION, detector_config, weights, *root)
    assert 'the model is a RetinaNet, expected an image classifier' in text
    patches = [*STEM, 'model.backbone.moe.unit=patch', 'model.backbone.moe.grid=2']
    assert 'a patch has no class of its own' in fails(
        ALLOCATION, config(), checkpoint, *root, '--cfg-options', *patches
    )
