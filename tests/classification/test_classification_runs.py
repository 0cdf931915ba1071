"""Runs of classifiers through the functions behind tools/: data folder, resuming, testing, mistakes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from small_files import write_cifar100, write_folder, write_mnist

from moe_det.common.config_edit import set_data_root
from moe_det.dataset_check.before_run import check_data
from moe_det.errors import CheckpointError, DataError, MoEConfigError
from moe_det.running import launch

CONFIGS = Path(__file__).resolve().parents[2] / 'configs' / 'classification'
# 60 images of a test, four iterations an epoch
SMALL = [
    'train_dataloader.batch_size=16',
    'train_cfg.val_interval=1',
    'log_level=WARNING',
    'default_hooks.logger.interval=1',
]


def run(root: Path, work_dir: Path, *options: str, config: str = 'mnist_attentive_importance', epochs: int = 2, **more):
    options = [*SMALL, f'train_cfg.max_epochs={epochs}', *options]
    return launch.train(
        str(CONFIGS / f'{config}.py'), work_dir=str(work_dir), data_root=str(root), cfg_options=options, **more
    )


def lines_of(work_dir: Path, key: str) -> dict[int, float]:
    """Step -> value of a key in everything that was logged."""
    found = {}
    for file in sorted(work_dir.rglob('scalars.json')):
        for line in map(json.loads, file.read_text().splitlines()):
            if key in line:
                found[line['step']] = line[key]
    return found


def weights(file: Path) -> dict[str, torch.Tensor]:
    return torch.load(file, map_location='cpu')['state_dict']


@pytest.fixture(scope='module')
def mnist(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp('data')
    write_mnist(root)
    return root


@pytest.fixture(scope='module')
def trained(mnist, tmp_path_factory) -> Path:
    """Two epochs."""
    work_dir = tmp_path_factory.mktemp('trained')
    run(mnist, work_dir)
    return work_dir


def test_log_of_a_run(trained):
    assert set(lines_of(trained, 'error')) and set(lines_of(trained, 'loss_moe_importance')) == {*range(1, 9)}
    for key, largest in (('I_EY', 2.33), ('H_s', 2.33), ('H_u', 2.33)):
        assert all(0 <= value <= largest for value in lines_of(trained, key).values()) and lines_of(trained, key)
    assert (trained / 'epoch_2.pth').is_file()


@pytest.mark.parametrize('seed', [None, 3])
def test_a_resumed_run_goes_on_in_the_same_order(mnist, tmp_path, seed):
    options = ['train_dataloader.dataset.augment.padding=2', 'train_dataloader.dataset.augment.flip=0.5']
    run(mnist, tmp_path / 'whole', *options, seed=seed)
    drawn = torch.load(tmp_path / 'whole' / 'epoch_1.pth', map_location='cpu')['meta']['seed']
    assert seed in (None, drawn)
    (tmp_path / 'part').mkdir()
    (tmp_path / 'part' / 'epoch_1.pth').write_bytes((tmp_path / 'whole' / 'epoch_1.pth').read_bytes())
    (tmp_path / 'part' / 'last_checkpoint').write_text(str(tmp_path / 'part' / 'epoch_1.pth'))
    run(mnist, tmp_path / 'part', *options, resume='auto', seed=seed)
    whole, part = weights(tmp_path / 'whole' / 'epoch_2.pth'), weights(tmp_path / 'part' / 'epoch_2.pth')
    assert all(torch.equal(whole[key], part[key]) for key in whole)
    other = [*options, 'randomness.seed=12345']
    run(mnist, tmp_path / 'other', *other, epochs=1)
    first, again = weights(tmp_path / 'whole' / 'epoch_1.pth'), weights(tmp_path / 'other' / 'epoch_1.pth')
    assert not all(torch.equal(first[key], again[key]) for key in first)


def test_testing_draws_the_table(mnist, trained, tmp_path):
    config = str(CONFIGS / 'mnist_attentive_importance.py')
    checkpoint = str(trained / 'epoch_2.pth')
    options = dict(data_root=str(mnist), cfg_options=['log_level=WARNING'])
    metrics = launch.test(config, checkpoint, work_dir=str(tmp_path), **options)
    assert set(metrics) == {'error', 'I_EY', 'H_s', 'H_u'}
    logged = lines_of(trained, 'H_u')
    assert metrics['H_u'] == pytest.approx(logged[max(logged)], abs=1e-5)
    (picture,) = tmp_path.rglob('experts_and_classes_*.png')
    assert picture.stat().st_size > 5000
    pickled = tmp_path / 'found.pkl'
    launch.test(config, checkpoint, work_dir=str(tmp_path), out=str(pickled), **options)
    assert pickled.stat().st_size > 0


def test_distillation_starts_from_an_attentive_run(mnist, trained, tmp_path):
    source = f'load_from={trained / "epoch_2.pth"}'
    run(mnist, tmp_path / 'a', source, config='mnist_distilled_importance', epochs=1)
    before, after = weights(trained / 'epoch_2.pth'), weights(tmp_path / 'a' / 'epoch_1.pth')
    experts = [key for key in before if key.startswith('expert_group.')]
    assert experts and all(torch.equal(before[key], after[key]) for key in experts)
    fitted = [key for key in after if key.startswith('router.gate.student.')]
    old = {key: before.get(key.replace('.student.net.', '.query.net.')) for key in fitted}
    assert any(old[key] is not None and not torch.equal(old[key], after[key]) for key in fitted)
    run(mnist, tmp_path / 'plain', config='mnist_original', epochs=1)
    with pytest.raises(CheckpointError, match='a plain gate at router.gate: DistilledGate needs'):
        run(
            mnist,
            tmp_path / 'b',
            f'load_from={tmp_path / "plain" / "epoch_1.pth"}',
            config='mnist_distilled_importance',
        )
    with pytest.raises(CheckpointError, match='load_from: .*epoch_20.pth does not exist'):
        run(mnist, tmp_path / 'c', config='mnist_distilled_importance')


def test_data_folder_is_moved_and_checked(tmp_path, mnist):
    cfg = Config.fromfile(CONFIGS / 'mnist_single.py')
    with pytest.raises(DataError, match='train_dataloader.dataset: .* does not hold MNIST .*--data-root DIR, or downl'):
        check_data(cfg)
    set_data_root(cfg, str(mnist))
    check_data(cfg, ('train', 'val', 'test'))
    assert cfg.test_dataloader.dataset.data_root == str(mnist)
    (tmp_path / 'MNIST' / 'raw').mkdir(parents=True)
    (tmp_path / 'MNIST' / 'raw' / 'train-images-idx3-ubyte').write_bytes(b'')
    set_data_root(cfg, str(tmp_path))
    with pytest.raises(DataError, match='only in part'):
        check_data(cfg)
    cfg.train_dataloader.dataset.download = True
    check_data(cfg, ('train',))
    cfg.train_dataloader.dataset.name = 'MNISST'
    with pytest.raises(MoEConfigError, match="Did you mean 'MNIST'"):
        check_data(cfg, ('train',))


def test_model_and_data_must_have_the_same_classes(mnist, tmp_path):
    with pytest.raises(MoEConfigError, match='train_dataloader: the data set has 10 classes, the model num_classes=12'):
        run(mnist, tmp_path, 'model.num_classes=12')


def test_cifar100_from_its_archive(tmp_path):
    write_cifar100(tmp_path)
    options = ('model.moe.num_experts=2', 'model.moe.top_k=2', 'train_dataloader.batch_size=100')
    run(tmp_path, tmp_path / 'run', *options, config='cifar100_single', epochs=1)
    found = lines_of(tmp_path / 'run', 'top5_error')
    assert all(0.5 < value <= 1 for value in found.values()) and found


def test_image_folder_of_the_users_own(tmp_path):
    write_folder(tmp_path / 'pets', train=10, test=10, size=28)
    options = [
        f'{split}_dataloader.dataset.{key}={value}'
        for split in ('train', 'val')
        for key, value in (('name', 'None'), ('image_folder', 'pets'), ('grayscale', 'True'), ('cache_dir', 'None'))
    ]
    run(tmp_path, tmp_path / 'run', *options, 'model.num_classes=2', config='mnist_original', epochs=1)
    assert lines_of(tmp_path / 'run', 'error')
