"""The classification data set reads what lies in the original files, and refuses what does not fit."""

from __future__ import annotations

import pickle
import shutil
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image
from small_files import CIFAR10_NAMES, CIFAR100_NAMES, write_cifar100, write_folder, write_mnist

from moe_det.classification import image_folder
from moe_det.classification.dataset import ClassificationDataset, whole_batch
from moe_det.errors import DataError, MoEConfigError


@pytest.mark.parametrize('name', ['MNIST', 'FashionMNIST'])
def test_mnist_files(tmp_path, name):
    written = write_mnist(tmp_path, name)
    for split, (images, labels) in written.items():
        data = ClassificationDataset(name, str(tmp_path), split, device='cpu')
        assert data.images.shape == (len(images), 1, 28, 28) and data.images.dtype == torch.uint8
        assert np.array_equal(data.images.numpy()[:, 0], images) and data.labels.tolist() == labels.tolist()
        assert len(data.metainfo['classes']) == 10 and data.metainfo['dataset'] == name


@pytest.mark.parametrize('as_archive', [True, False])
def test_cifar100_in_its_original_format(tmp_path, as_archive):
    written = write_cifar100(tmp_path, as_archive)
    for split, (pixels, labels) in written.items():
        data = ClassificationDataset('CIFAR100', str(tmp_path), split, device='cpu')
        # the format: 1024 red bytes, then green, then blue, each row by row
        image = data.images[7].numpy()
        assert image[1, 2, 3] == pixels[7, 1024 + 2 * 32 + 3] and image[2, 0, 31] == pixels[7, 2048 + 31]
        assert np.array_equal(data.images.flatten(1).numpy(), pixels) and data.labels.tolist() == list(labels)
        assert data.metainfo['classes'] == CIFAR100_NAMES


def test_cifar10_in_its_original_format(tmp_path):
    folder = tmp_path / 'cifar-10-batches-py'
    folder.mkdir()
    random = np.random.default_rng(0)
    batches = {f'data_batch_{i}': random.integers(0, 256, (20, 3072), dtype=np.uint8) for i in range(1, 6)}
    batches['test_batch'] = random.integers(0, 256, (20, 3072), dtype=np.uint8)
    for name, pixels in batches.items():
        content = {b'data': pixels, b'labels': [i % 10 for i in range(20)]}
        (folder / name).write_bytes(pickle.dumps(content))
    names = [f'class_{i}' for i in range(10)]
    (folder / 'batches.meta').write_bytes(pickle.dumps({'label_names': names}))
    data = ClassificationDataset('CIFAR10', str(tmp_path), 'train', device='cpu')
    expected = np.concatenate([batches[f'data_batch_{i}'] for i in range(1, 6)])
    assert np.array_equal(data.images.flatten(1).numpy(), expected) and data.metainfo['classes'] == tuple(names)
    test = ClassificationDataset('CIFAR10', str(tmp_path), 'test', device='cpu')
    assert np.array_equal(test.images.flatten(1).numpy(), batches['test_batch'])


def test_pickles_cannot_run_code(tmp_path):
    write_cifar100(tmp_path, as_archive=False)

    class Evil:
        def __reduce__(self):
            return print, ('executed',)

    (tmp_path / 'cifar-100-python' / 'train').write_bytes(pickle.dumps({'data': Evil(), 'fine_labels': [0]}))
    with pytest.raises(DataError, match='print, which is not part of a data set'):
        ClassificationDataset('CIFAR100', str(tmp_path), 'train')


@pytest.mark.parametrize('packed', [None, 'w', 'w:gz'])
def test_image_folder_and_tar(tmp_path, packed):
    written = write_folder(tmp_path / 'pets')
    path = 'pets'
    if packed is not None:
        path = 'pets.tar' if packed == 'w' else 'pets.tar.gz'
        with tarfile.open(tmp_path / path, packed) as tar:
            tar.add(tmp_path / 'pets', arcname='./some/where')
    for split in ('train', 'test'):
        data = ClassificationDataset(None, str(tmp_path), split, path, cache_dir=None, device='cpu')
        assert data.metainfo['classes'] == ('ant', 'cat')  # in order of name
        expected = written[split]['ant'] + written[split]['cat']
        assert np.array_equal(data.images.permute(0, 2, 3, 1).numpy(), np.stack(expected))
        half = len(expected) // 2
        assert data.labels.tolist() == [0] * half + [1] * half


def test_images_are_decoded_once(tmp_path, monkeypatch):
    write_folder(tmp_path / 'pets')
    cache = tmp_path / 'cache'

    def load():
        return ClassificationDataset(None, str(tmp_path), 'train', 'pets', cache_dir=str(cache), device='cpu')

    first = load()
    with monkeypatch.context() as patch:
        patch.setattr(image_folder, '_decode', None)
        again = load()
    assert torch.equal(again.images, first.images) and torch.equal(again.labels, first.labels)
    assert again.classes == first.classes
    # another image in the folder: the cache no longer answers
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / 'pets' / 'train' / 'ant' / '999.png')
    assert len(load()) == len(first) + 1
    for file in cache.iterdir():
        file.write_bytes(b'damaged')
    assert len(load()) == len(first) + 1


def test_image_size_and_grayscale(tmp_path):
    write_folder(tmp_path / 'pets')

    def shape(**options) -> tuple[int, ...]:
        data = ClassificationDataset(None, str(tmp_path), 'train', 'pets', cache_dir=None, device='cpu', **options)
        return tuple(data.images.shape[1:])

    assert shape(image_size=4) == (3, 4, 4)
    assert shape(grayscale=True) == (1, 8, 8)
    Image.fromarray(np.zeros((9, 8, 3), np.uint8)).save(tmp_path / 'pets' / 'train' / 'cat' / '000.png')
    with pytest.raises(DataError, match='cat/000.png has 9 x 8 pixels, .* 8 x 8; set image_size'):
        shape()


def test_cifar10_as_image_folder_where_the_original_is_missing(tmp_path):
    written = write_folder(tmp_path / 'images', CIFAR10_NAMES, train=1, test=2, size=32)
    options = dict(name='CIFAR10', data_root=str(tmp_path), split='test', cache_dir=None, device='cpu')
    data = ClassificationDataset(image_folder='images', **options)
    assert data.labels.tolist() == [i // 2 for i in range(20)] and data.classes == CIFAR10_NAMES
    assert np.array_equal(data.images[18].permute(1, 2, 0).numpy(), written['test']['truck'][0])
    write_folder(tmp_path / 'two')
    with pytest.raises(DataError, match='two has 2 classes, CIFAR10 has 10'):
        ClassificationDataset(image_folder='two', **options)
    with pytest.raises(DataError, match='holds neither cifar-10-batches-py/ nor cifar-10-python.tar.gz'):
        ClassificationDataset(image_folder='nothing', **options)


def test_batches_are_formed_by_indexing(tmp_path):
    images, labels = write_mnist(tmp_path)['train']
    data = ClassificationDataset('MNIST', str(tmp_path), device='cpu')
    batch = data.__getitems__([5, 3, 3])
    assert np.array_equal(batch['inputs'].numpy()[:, 0], images[[5, 3, 3]])
    assert batch['labels'].tolist() == labels[[5, 3, 3]].tolist()
    assert torch.equal(data[5]['inputs'], batch['inputs'][0]) and data[5]['labels'] == labels[5]
    assert whole_batch(batch) is batch
    stacked = whole_batch([data[5], data[3]])
    assert torch.equal(stacked['inputs'], batch['inputs'][:2])


def test_subset_is_spread_over_the_split(tmp_path):
    write_folder(tmp_path / 'pets', train=6)
    data = ClassificationDataset(None, str(tmp_path), 'train', 'pets', cache_dir=None, subset=4, device='cpu')
    assert data.labels.tolist() == [0, 0, 1, 1]  # 12 images in order of class


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(name='MNISTT'), "unknown data set 'MNISTT'.* Did you mean 'MNIST'"),
        (dict(name=None), 'expected name, one of MNIST, .*, or image_folder'),
        (dict(name='MNIST', split='val'), "dataset.split: unknown split 'val'"),
        (dict(name='MNIST', augment=dict(flip=2)), r'dataset.augment: flip=2: expected a probability'),
        (dict(name='MNIST', augment=dict(zoom=2)), "dataset.augment: .*'zoom'"),
        (dict(name='MNIST', subset=0), 'dataset.subset=0: expected an integer >= 1'),
    ],
)
def test_bad_settings(tmp_path, options, message):
    write_mnist(tmp_path)
    with pytest.raises(MoEConfigError, match=message):
        ClassificationDataset(**{'data_root': str(tmp_path), **options})


def test_missing_and_half_there(tmp_path):
    with pytest.raises(DataError, match='does not hold MNIST'):
        ClassificationDataset('MNIST', str(tmp_path))
    write_mnist(tmp_path)
    (tmp_path / 'MNIST' / 'raw' / 't10k-labels-idx1-ubyte').unlink()
    with pytest.raises(DataError, match='holds MNIST only in part: t10k-labels-idx1-ubyte is missing'):
        ClassificationDataset('MNIST', str(tmp_path))
    with pytest.raises(DataError, match='holds neither cifar-100-python/ nor cifar-100-python.tar.gz'):
        ClassificationDataset('CIFAR100', str(tmp_path))
    write_cifar100(tmp_path, as_archive=False)
    (tmp_path / 'cifar-100-python' / 'meta').unlink()
    with pytest.raises(DataError, match='only in part: meta is missing'):
        ClassificationDataset('CIFAR100', str(tmp_path))


def test_damaged_files(tmp_path):
    write_mnist(tmp_path)
    file = tmp_path / 'MNIST' / 'raw' / 'train-images-idx3-ubyte'
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(DataError, match='the train files are damaged'):
        ClassificationDataset('MNIST', str(tmp_path))
    write_cifar100(tmp_path)
    archive = tmp_path / 'cifar-100-python.tar.gz'
    archive.write_bytes(archive.read_bytes()[:5000])
    with pytest.raises(DataError, match='cifar-100-python.tar.gz'):
        ClassificationDataset('CIFAR100', str(tmp_path))


def test_labels_that_do_not_fit(tmp_path):
    folder = tmp_path / 'MNIST' / 'raw'
    for count, message in ((10, 'label 12, expected 0 to 9'), (7, '60 images, but 7 labels')):
        write_mnist(tmp_path)
        file = folder / 'train-labels-idx1-ubyte'
        content = bytearray(file.read_bytes())
        content[-1] = 12
        if count == 7:
            content = content[:4] + (7).to_bytes(4, 'big') + content[8:15]
        file.write_bytes(bytes(content))
        with pytest.raises(DataError, match=message):
            ClassificationDataset('MNIST', str(tmp_path))
    write_cifar100(tmp_path / 'cifar', labels={'train': [i % 99 for i in range(200)]})
    with pytest.raises(DataError, match='no image of class fine_99'):
        ClassificationDataset('CIFAR100', str(tmp_path / 'cifar'))


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ('empty', 'split train: no image of class ant'),
        ('missing', 'different classes: ant is in one of them alone'),
        ('no test', 'has no folder test; it holds train'),
        ('damaged', 'train/ant/001.png is not a readable image'),
    ],
)
def test_folders_that_do_not_fit(tmp_path, change, message):
    pets = tmp_path / 'pets'
    write_folder(pets)
    if change == 'empty':
        for file in (pets / 'train' / 'ant').iterdir():
            file.unlink()
    elif change == 'damaged':
        (pets / 'train' / 'ant' / '001.png').write_bytes(b'no image')
    else:
        shutil.rmtree(pets / 'test' / 'ant' if change == 'missing' else pets / 'test')
    with pytest.raises(DataError, match=message):
        ClassificationDataset(None, str(tmp_path), 'train', 'pets', cache_dir=None)


def test_damaged_tar(tmp_path):
    write_folder(tmp_path / 'pets')
    with tarfile.open(tmp_path / 'pets.tar.gz', 'w:gz') as tar:
        tar.add(tmp_path / 'pets', arcname='.')
    content = (tmp_path / 'pets.tar.gz').read_bytes()
    (tmp_path / 'pets.tar.gz').write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match='pets.tar.gz is truncated or damaged'):
        ClassificationDataset(None, str(tmp_path), 'train', 'pets.tar.gz', cache_dir=None)
    (tmp_path / 'pets.txt').write_text('no tar')
    with pytest.raises(DataError, match='neither a folder nor a tar file'):
        ClassificationDataset(None, str(tmp_path), 'train', 'pets.txt', cache_dir=None)
    with pytest.raises(DataError, match='nothing does not exist'):
        ClassificationDataset(None, str(tmp_path), 'train', 'nothing', cache_dir=None)
