"""Order and augmentation of an epoch: functions of seed, epoch and image, against plain loops over images."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from mmengine.runner import Runner
from PIL import Image
from small_files import write_mnist
from torchvision.transforms import functional

import moe_det  # noqa: F401  registers what the configs name
from moe_det.classification.augmentation import BatchAugmentation, crop_and_flip
from moe_det.classification.dataset import ClassificationDataset
from moe_det.classification.epoch_sampler import EpochSampler


def test_crop_and_flip_against_slices():
    images = torch.randint(0, 256, (30, 3, 6, 5), dtype=torch.uint8)
    offsets = torch.randint(0, 5, (30, 2))
    flipped = torch.rand(30) < 0.5
    result = crop_and_flip(images, offsets, flipped, padding=2)
    for image, (top, left), mirror, found in zip(
        images.numpy(), offsets.tolist(), flipped.tolist(), result, strict=True
    ):
        padded = np.pad(image[:, :, ::-1] if mirror else image, ((0, 0), (2, 2), (2, 2)))
        assert np.array_equal(found.numpy(), padded[:, top : top + 6, left : left + 5])


def test_jitter_against_torchvision_image_by_image():
    torch.manual_seed(0)
    images = torch.randint(0, 256, (40, 3, 8, 8), dtype=torch.uint8)
    augment = BatchAugmentation(jitter=(0.3, 0.4, 0.5))
    numbers = augment.draw(40, seed=3, epoch=2)
    result = augment(images, numbers)
    steps = (functional.adjust_brightness, functional.adjust_contrast, functional.adjust_saturation)
    orders = [(0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)]
    seen = set()
    for image, drawn, found in zip(images, numbers.tolist(), result, strict=True):
        factors = [1 + (2 * u - 1) * j for u, j in zip(drawn[:3], (0.3, 0.4, 0.5), strict=True)]
        order = orders[int(drawn[3] * 6)]
        seen.add(order)
        expected = image.float() / 255
        for step in order:
            expected = steps[step](expected, factors[step])
        # torchvision's grayscale weights have one digit more
        assert torch.allclose(found, expected, atol=2e-3)
    assert len(seen) == 6


def test_jitter_of_gray_images_leaves_saturation_out():
    images = torch.randint(0, 256, (4, 1, 8, 8), dtype=torch.uint8)
    augment = BatchAugmentation(jitter=(0.0, 0.0, 0.9))
    assert torch.allclose(augment(images, augment.draw(4, 0, 0)), images / 255, atol=1e-6)


def test_augmentation_has_the_range_that_it_names():
    augment = BatchAugmentation(flip=0.25, padding=4)
    numbers = augment.draw(20000, seed=1, epoch=0)
    # one bright pixel in the middle tells the shift; its column before the crop the flip
    images = torch.zeros(20000, 1, 9, 10, dtype=torch.uint8)
    images[:, :, 4, 4] = 255
    result = augment(images, numbers)[:, 0]
    where = result.flatten(1).argmax(1)
    rows, columns = where // 10, where % 10
    visible = result.flatten(1).amax(1) > 0
    assert visible.all() and rows.unique().tolist() == list(range(9))
    # unflipped the column is uniform in 0 ... 8, flipped in 1 ... 9
    counts = torch.bincount(columns, minlength=10) / 20000
    assert counts[0] == pytest.approx(0.75 / 9, abs=0.01) and counts[9] == pytest.approx(0.25 / 9, abs=0.01)


@pytest.mark.parametrize(
    'options', [dict(flip=-0.1), dict(jitter=(0.1, 0.1)), dict(jitter=(0, 0, 2)), dict(padding=-1), dict(padding=True)]
)
def test_bad_augmentations(options):
    with pytest.raises(ValueError, match=f'{next(iter(options))}='):
        BatchAugmentation(**options)


def test_what_happens_to_an_image_does_not_depend_on_its_batch(tmp_path):
    write_mnist(tmp_path)
    options = dict(data_root=str(tmp_path), augment=dict(flip=0.5, padding=2), device='cpu')
    data = ClassificationDataset('MNIST', **options)
    data.set_epoch(3, 7)
    together = data.__getitems__([1, 2, 3, 4])['inputs']
    assert torch.equal(data.__getitems__([4, 2])['inputs'], together[[3, 1]])
    again = ClassificationDataset('MNIST', **options)
    again.set_epoch(3, 7)
    assert torch.equal(again.__getitems__([1, 2, 3, 4])['inputs'], together)
    for epoch, seed in ((4, 7), (3, 8)):
        again.set_epoch(epoch, seed)
        assert not torch.equal(again.__getitems__([1, 2, 3, 4])['inputs'], together)


def loader(root, **dataset):
    return dict(
        batch_size=16,
        num_workers=0,
        sampler=dict(type='EpochSampler', shuffle=True),
        collate_fn=dict(type='whole_batch'),
        dataset=dict(type='ClassificationDataset', name='MNIST', data_root=str(root), device='cpu', **dataset),
    )


def test_loader_of_a_config(tmp_path):
    from mmengine.registry import DefaultScope

    written = write_mnist(tmp_path)['train']
    with DefaultScope.overwrite_default_scope('mmdet'):
        built = Runner.build_dataloader(loader(tmp_path), seed=11)
    epochs = []
    for epoch in (0, 1):
        built.sampler.set_epoch(epoch)
        batches = list(built)
        assert [len(batch['labels']) for batch in batches] == [16, 16, 16, 12]
        order = torch.randperm(60, generator=torch.Generator().manual_seed(11 + epoch))
        labels = torch.cat([batch['labels'] for batch in batches])
        assert labels.tolist() == written[1][order.numpy()].tolist()
        images = torch.cat([batch['inputs'] for batch in batches])
        assert np.array_equal(images.numpy()[:, 0], written[0][order.numpy()])
        epochs.append(labels)
    assert not torch.equal(*epochs)


@pytest.mark.parametrize('device, pinned', [('meta', False), ('cpu', True)])
def test_what_is_on_the_device_is_not_pinned(tmp_path, device, pinned):
    """torch cannot pin it; 'meta' stands for a GPU."""
    import types

    from moe_det.classification.hook import ClassificationHook

    write_mnist(tmp_path)
    data = ClassificationDataset('MNIST', data_root=str(tmp_path), device=device)
    built = torch.utils.data.DataLoader(data, pin_memory=True)
    loop = types.SimpleNamespace(dataloader=built)
    runner = types.SimpleNamespace(model=torch.nn.Identity(), train_loop=loop, val_loop=loop, test_loop=loop)
    for part in ('train', 'val', 'test'):
        built.pin_memory = True
        getattr(ClassificationHook(), f'before_{part}')(runner)
        assert built.pin_memory is pinned


def test_sampler_tells_the_data_set_the_epoch():
    class Listening(list):
        heard = None

        def set_epoch(self, epoch, seed):
            self.heard = (epoch, seed)

    data = Listening(range(4))
    sampler = EpochSampler(data, seed=5)
    assert data.heard == (0, 5)
    sampler.set_epoch(2)
    assert data.heard == (2, 5)
    EpochSampler(range(4), seed=5).set_epoch(1)  # a data set that does not listen


def test_jpeg_and_png_are_read_alike(tmp_path):
    from moe_det.classification.image_folder import read_folder

    for split in ('train', 'test'):
        for name in ('a', 'b'):
            (tmp_path / split / name).mkdir(parents=True)
            flat = np.full((8, 8, 3), 90 if name == 'a' else 200, np.uint8)
            Image.fromarray(flat).save(tmp_path / split / name / '0.JPG', quality=95)
            Image.fromarray(flat).save(tmp_path / split / name / '1.png')
            (tmp_path / split / name / 'notes.txt').write_text('no image')
    data = read_folder(str(tmp_path), 'train')
    assert data.labels.tolist() == [0, 0, 1, 1]
    assert np.abs(data.images[0].astype(int) - data.images[1]).max() <= 2
