"""Small data sets in their original formats, config files of small detectors, and checkpoints of their models."""

from __future__ import annotations

import contextlib
import io
import json
import pickle
import struct
import tarfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.runner import load_checkpoint
from PIL import Image
from small_models import RETINANET, batch, build, config, predictions_of, shrink, spread_weights
from torch import Tensor, nn

from moe_det.converters.files import config_text
from moe_det.routing import find_routers
from moe_det.running.launch import load_config

CIFAR10_NAMES = ('airplane', 'automobile', 'bird', 'cat', 'deer', 'dog', 'frog', 'horse', 'ship', 'truck')
CIFAR100_NAMES = tuple(f'fine_{i}' for i in range(100))
DETR_NAMES = ('a', 'b', 'c')
SIDE = 32


# -- images for classifiers -----------------------------------------------------------------------------------------


def write_mnist(root: Path, name: str = 'MNIST', train: int = 60, test: int = 20, size: int = 28) -> dict:
    """Writes the four idx files below ``root/<name>/raw``; returns split -> (images, labels)."""
    random = np.random.default_rng(0)
    folder = root / name / 'raw'
    folder.mkdir(parents=True, exist_ok=True)
    data = {}
    for split, prefix, count in (('train', 'train', train), ('test', 't10k', test)):
        labels = (np.arange(count) % 10).astype(np.uint8)
        # a class is told by where its bright square lies
        images = random.integers(0, 60, (count, size, size), dtype=np.uint8)
        for image, label in zip(images, labels, strict=True):
            row, column = divmod(int(label), 4)
            image[row * 9 : row * 9 + 8, column * 7 : column * 7 + 6] = 250
        header = struct.pack('>IIII', 0x00000803, count, size, size)
        (folder / f'{prefix}-images-idx3-ubyte').write_bytes(header + images.tobytes())
        (folder / f'{prefix}-labels-idx1-ubyte').write_bytes(struct.pack('>II', 0x00000801, count) + labels.tobytes())
        data[split] = (images, labels)
    return data


def write_cifar10(root: Path, per_class: int = 1) -> Path:
    """Writes CIFAR-10 in its original format, with so many images per class and file, whose colour tells the class."""
    folder = root / 'cifar-10-batches-py'
    folder.mkdir(parents=True)
    colours = np.random.default_rng(0).integers(40, 215, (10, 3, 1))
    labels = np.tile(np.arange(10), per_class)
    for seed, name in enumerate([*(f'data_batch_{i}' for i in range(1, 6)), 'test_batch']):
        noise = np.random.default_rng(seed).integers(-40, 41, (len(labels), 3, 1024))
        pixels = (colours[labels] + noise).astype(np.uint8).reshape(len(labels), 3072)
        (folder / name).write_bytes(pickle.dumps({b'data': pixels, b'labels': labels.tolist()}, protocol=2))
    names = [name.encode() for name in CIFAR10_NAMES]
    (folder / 'batches.meta').write_bytes(pickle.dumps({b'label_names': names}, protocol=2))
    return root


def write_cifar100(
    root: Path,
    as_archive: bool = True,
    count: int = 200,
    labels: dict | None = None,
    names: Sequence[str] = CIFAR100_NAMES,
) -> dict:
    """Writes CIFAR-100 in its original format, pickled dicts of protocol 2; returns split -> (pixels, labels)."""
    random = np.random.default_rng(1)
    folder = root / 'cifar-100-python'
    folder.mkdir(parents=True)
    data = {}
    for split in ('train', 'test'):
        pixels = random.integers(0, 256, (count, 3072), dtype=np.uint8)
        fine = (labels or {}).get(split) or [i % 100 for i in range(count)]
        content = {'filenames': [f'{i}.png' for i in range(count)], 'batch_label': split, 'data': pixels}
        content |= {'fine_labels': fine, 'coarse_labels': [label // 5 for label in fine]}
        (folder / split).write_bytes(pickle.dumps(content, protocol=2))
        data[split] = (pixels, fine)
    meta = {'fine_label_names': list(names), 'coarse_label_names': [f'coarse_{i}' for i in range(20)]}
    (folder / 'meta').write_bytes(pickle.dumps(meta, protocol=2))
    if as_archive:
        with tarfile.open(root / 'cifar-100-python.tar.gz', 'w:gz') as tar:
            tar.add(folder, arcname=folder.name)
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()
    return data


def write_folder(root: Path, classes=('cat', 'ant'), train: int = 3, test: int = 2, size: int = 8) -> dict:
    """Writes ``<split>/<class>/<number>.png`` below ``root``; returns split -> class -> list of (H, W, 3) images."""
    random = np.random.default_rng(2)
    data = {}
    for split, count in (('train', train), ('test', test)):
        data[split] = {}
        for name in classes:
            folder = root / split / name
            folder.mkdir(parents=True)
            data[split][name] = [random.integers(0, 256, (size, size, 3), dtype=np.uint8) for _ in range(count)]
            for i, image in enumerate(data[split][name]):
                Image.fromarray(image).save(folder / f'{i:03}.png')
    return data


# -- images in COCO's format ------------------------------------------------------------------------------------------


def coco_content(
    objects: Iterable[tuple], images: Iterable[object], names: dict, size: tuple[int, int], suffix: str = 'png'
) -> dict:
    """What an annotation file holds.

    Args:
        objects: of each the image's id, the category's id, the box [x, y, width, height], and its area where that is
            not the box's.
        images: their ids, after which their files are named.
        names: id of a category -> its name.
        size: width and height of all images.
        suffix: of the files.
    """
    annotations = [
        dict(id=n, image_id=image, category_id=category, bbox=list(box), area=(area or [box[2] * box[3]])[0], iscrowd=0)
        for n, (image, category, box, *area) in enumerate(objects, start=1)
    ]
    return dict(
        images=[dict(id=i, file_name=f'{i}.{suffix}', width=size[0], height=size[1]) for i in images],
        annotations=annotations,
        categories=[dict(id=ident, name=name) for ident, name in names.items()],
    )


def damage(folder: Path) -> list[str]:
    """Damages images 2, 3, 5 and 6 of a folder in four ways; returns their paths."""
    paths = [folder / 'images' / f'{number}.jpg' for number in (2, 3, 5, 6)]
    paths[0].write_bytes(b'')
    paths[1].write_bytes(b'<html>')
    paths[2].write_bytes(paths[2].read_bytes()[:300])
    paths[3].unlink()
    return [str(path) for path in paths]


def write_images(folder: Path, count: int = 10) -> Path:
    """Writes ``count`` images, whose grey value is ten times their id, with one object each."""
    (folder / 'images').mkdir(parents=True)
    for number in range(count):
        Image.new('RGB', (SIDE, SIDE), (10 * number,) * 3).save(folder / 'images' / f'{number}.jpg')
    objects = [(number, 1, [4, 4, 9, 9]) for number in range(count)]
    content = coco_content(objects, range(count), {1: 'thing'}, (SIDE, SIDE), 'jpg')
    (folder / 'all.json').write_text(json.dumps(content))
    return folder


def write_noise(folder: Path, count: int) -> list[Path]:
    """Images of 64 pixels, of noise about a colour of their own."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    paths = [folder / f'{number}.png' for number in range(count)]
    for path in paths:
        noise = rng.integers(0, 100, (64, 64, 3)) + rng.integers(0, 155, 3)
        Image.fromarray(noise.astype(np.uint8)).save(path)
    return paths


def boxes_as_truth(results: list, paths: list[Path], file: Path) -> None:
    """Writes some of a detector's own detections as the annotations of its images."""
    objects = []
    rng = np.random.default_rng(0)
    for number, found in enumerate(results):
        for i in rng.permutation(len(found.scores))[:4].tolist():
            x1, y1, x2, y2 = found.bboxes[i].tolist()
            objects.append((number, int(found.labels[i]) + 1, [x1, y1, x2 - x1, y2 - y1]))
    file.parent.mkdir(parents=True)
    content = coco_content(objects, range(len(paths)), dict(enumerate(DETR_NAMES, start=1)), (64, 64))
    file.write_text(json.dumps(content))


def use_noise_images(cfg: Config, folder: Path) -> None:
    """Lets a config test on ``folder/images`` (:func:`write_noise`), annotated in ``annotations/truth.json``."""
    meta_keys = ('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')
    cfg.test_dataloader = {
        'batch_size': 10,
        'num_workers': 0,
        'sampler': {'type': 'DefaultSampler', 'shuffle': False},
        'dataset': {
            'type': 'CocoDataset',
            'data_root': str(folder),
            'metainfo': {'classes': DETR_NAMES},
            'ann_file': 'annotations/truth.json',
            'data_prefix': {'img': 'images/'},
            'test_mode': True,
            'pipeline': [
                {'type': 'LoadImageFromFile'},
                {'type': 'Resize', 'scale': (64, 64), 'keep_ratio': True},
                {'type': 'LoadAnnotations', 'with_bbox': True},
                {'type': 'PackDetInputs', 'meta_keys': meta_keys},
            ],
        },
    }
    truth = str(folder / 'annotations' / 'truth.json')
    cfg.test_evaluator = {'type': 'CocoMetric', 'ann_file': truth, 'metric': 'bbox'}
    cfg.custom_imports = {'imports': ['moe_det'], 'allow_failed_imports': False}


def write_own_boxes(folder: Path, name: str, cfg: Config, plant: Callable[[Config], nn.Module], count: int) -> None:
    """Writes config, checkpoint and images of a planted detector, some of whose own boxes are the ground truth."""
    paths = write_noise(folder / 'images', count)
    use_noise_images(cfg, folder)
    cfg.dump(folder / name)
    model = plant(cfg)
    found = []
    for path in paths:
        sample = DetDataSample(metainfo={'img_shape': (64, 64), 'ori_shape': (64, 64), 'scale_factor': (1.0, 1.0)})
        image = torch.from_numpy(cv2.imread(str(path)).transpose(2, 0, 1).copy())
        found.extend(predictions_of(model, {'inputs': [image], 'data_samples': [sample]}))
    boxes_as_truth(found, paths, folder / 'annotations' / 'truth.json')
    meta = {'dataset_meta': {'classes': DETR_NAMES}}
    torch.save({'state_dict': model.state_dict(), 'meta': meta}, folder / 'planted.pth')


def write_tiny_coco(folder: Path, splits: tuple[str, ...] = ('train', 'val')) -> Path:
    """Writes four 64-pixel images with one 24-pixel disc or box each, per split, in COCO's layout."""
    random = np.random.default_rng(0)
    (folder / 'annotations').mkdir(parents=True)
    for split in splits:
        (folder / split).mkdir()
        objects = []
        for number in range(1, 5):
            image = random.integers(0, 60, (64, 64, 3), dtype=np.uint8)
            x, y, label = 8 * number, 36 - 8 * number, number % 2
            if label:
                image[y : y + 24, x : x + 24] = (40, 220, 40)
            else:
                cv2.circle(image, (x + 12, y + 12), 12, (220, 40, 40), -1)
            cv2.imwrite(str(folder / split / f'{number}.png'), image)
            objects.append((number, label + 1, [x, y, 24, 24]))
        content = coco_content(objects, range(1, 5), {1: 'disc', 2: 'box'}, (64, 64))
        (folder / 'annotations' / f'{split}.json').write_text(json.dumps(content))
    return folder


# data/tiny does not exist: the data come with --data-root
TINY_CONFIG = """
data_root = 'data/tiny/'
meta = dict(classes=('disc', 'box'))
pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='Resize', scale=(64, 64), keep_ratio=True),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(64, 64), keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')),
]
train_dataloader = dict(
    batch_size=2,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(
        type='CocoDataset', data_root=data_root, metainfo=meta, ann_file='annotations/train.json',
        data_prefix=dict(img='train/'), pipeline=pipeline))
val_dataloader = dict(
    batch_size=1,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='CocoDataset', data_root=data_root, metainfo=meta, ann_file='annotations/val.json',
        data_prefix=dict(img='val/'), test_mode=True, pipeline=test_pipeline))
test_dataloader = val_dataloader
val_evaluator = dict(type='CocoMetric', ann_file=data_root + 'annotations/val.json', metric='bbox')
test_evaluator = val_evaluator
model = dict(
    type='RetinaNet',
    data_preprocessor=dict(
        type='DetDataPreprocessor', mean=[128.0] * 3, std=[64.0] * 3, bgr_to_rgb=True, pad_size_divisor=32),
    backbone=dict(
        type='ResNet', depth=18, base_channels=8, num_stages=4, out_indices=(0, 1, 2, 3),
        norm_cfg=dict(type='BN'), style='pytorch'),
    neck=dict(type='FPN', in_channels=[8, 16, 32, 64], out_channels=16, start_level=1,
              add_extra_convs='on_input', num_outs=5),
    bbox_head=dict(
        type='RetinaHead', num_classes=2, in_channels=16, stacked_convs=1, feat_channels=16,
        anchor_generator=dict(type='AnchorGenerator', octave_base_scale=4, scales_per_octave=3,
                              ratios=[0.5, 1.0, 2.0], strides=[8, 16, 32, 64, 128]),
        bbox_coder=dict(type='DeltaXYWHBBoxCoder', target_means=[0.0] * 4, target_stds=[1.0] * 4),
        loss_cls=dict(type='FocalLoss', use_sigmoid=True, gamma=2.0, alpha=0.25, loss_weight=1.0),
        loss_bbox=dict(type='L1Loss', loss_weight=1.0)),
    train_cfg=dict(
        assigner=dict(type='MaxIoUAssigner', pos_iou_thr=0.5, neg_iou_thr=0.4, min_pos_iou=0, ignore_iof_thr=-1),
        sampler=dict(type='PseudoSampler'), allowed_border=-1, pos_weight=-1, debug=False),
    test_cfg=dict(nms_pre=200, min_bbox_size=0, score_thr=0.0, nms=dict(type='nms', iou_threshold=0.5),
                  max_per_img=20))
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=1, val_interval=1)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.01, momentum=0.9))
default_scope = 'mmdet'
default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=1),
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=dict(type='CheckpointHook', interval=1),
    sampler_seed=dict(type='DistSamplerSeedHook'),
    visualization=dict(type='DetVisualizationHook'))
visualizer = dict(type='DetLocalVisualizer', vis_backends=[dict(type='LocalVisBackend')], name='visualizer')
"""


# -- configs with experts beside a config without, and checkpoints whose gates are planted ---------------------------


def moe_config(dense: Path, name: str = 'moe', **moe) -> Path:
    """Writes a config beside ``dense`` whose RetinaNet head has four experts, two per row."""
    path = dense.with_name(f'{name}.py')
    settings = {**dict(num_experts=4, top_k=2, width=0.5), **moe}
    path.write_text(
        f"_base_ = './{dense.name}'\n"
        "custom_imports = dict(imports=['moe_det'], allow_failed_imports=False)\n"
        f"model = dict(bbox_head=dict(type='MoERetinaHead', moe={settings!r}))\n"
    )
    return path


def checkpoint(config: Path, path: Path, plant: Callable[[nn.Module], None] | None = None, seed: int = 0) -> Path:
    """Saves random weights of a config's model, changed by ``plant``, as mmengine's Runner would."""
    torch.manual_seed(seed)
    cfg = load_config(config)
    with contextlib.redirect_stdout(io.StringIO()):
        model = MODELS.build(cfg.model)
    if plant is not None:
        with torch.no_grad():
            plant(model)
    classes = cfg.test_dataloader.dataset.get('metainfo', {}).get('classes', ('disc', 'box'))
    meta = dict(seed=seed, dataset_meta=dict(classes=tuple(classes)))
    torch.save(dict(state_dict=model.state_dict(), meta=meta), path)
    return path


def plant_logits(model: nn.Module, *logits: float) -> None:
    """Makes every gate give these logits to every row, whatever it sees."""
    with torch.no_grad():
        for router in find_routers(model).values():
            router.gate.fc.weight.zero_()
            router.gate.fc.bias.copy_(torch.tensor(logits))


def plant_varied(model: nn.Module) -> None:
    """Makes gates depend on what they see, strongly enough that all experts are used."""
    with torch.no_grad():
        for router in find_routers(model).values():
            weight = router.gate.fc.weight
            weight.copy_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)) * 50)
            router.gate.fc.bias.zero_()


# -- config files of small detectors for the converters, and what their models compute -------------------------------

IMPORTS = dict(imports=['moe_det'], allow_failed_imports=False)
HOOKS = [dict(type='MoEHook')]


def write_config(path: Path, moe: dict | None = None, **changes) -> Path:
    """A small RetinaNet of mmdet's own config; with ``moe`` its head has experts; ``changes`` by part of the model."""
    cfg = config(f"_base_ = '{RETINANET}'")
    cfg.model.backbone.depth = changes.pop('depth', 18)
    shrink(cfg, base_channels=4, channels=8)
    cfg.model.bbox_head.stacked_convs = 2
    if moe is not None:
        cfg.model.bbox_head.update(type='MoERetinaHead', moe=moe)
    for part, values in changes.items():
        cfg.model[part].update(values)
    if moe is not None or changes:
        cfg.custom_imports, cfg.custom_hooks = IMPORTS, HOOKS
    path.write_text(config_text(cfg))  # cfg.dump takes seconds to lay the text out
    return path


def model_of(config_file: Path, checkpoint: Path | None = None) -> nn.Module:
    """The model of a config file, in evaluation, with the weights of a checkpoint that must fit exactly."""
    model = build(load_config(config_file).model)
    if checkpoint is not None:
        load_checkpoint(model, str(checkpoint), map_location='cpu', strict=True)
    return model.eval()


def write_checkpoint(
    config_file: Path, path: Path, change: Callable[[nn.Module], object] = lambda model: None, seed: int = 0
) -> Path:
    """Weights at which outputs differ clearly from place to place, changed by ``change``."""
    torch.manual_seed(seed)
    model = spread_weights(model_of(config_file), seed)
    with torch.no_grad():
        change(model)
    torch.save(dict(meta=dict(dataset_meta=dict(classes=('a', 'b', 'c'))), state_dict=model.state_dict()), path)
    return path


def outputs_of(model: nn.Module) -> list[Tensor]:
    """Class logits and box deltas of all levels for two images."""
    data = model.data_preprocessor(batch(), False)
    with torch.no_grad():
        return [tensor for part in model(**data, mode='tensor') for tensor in part]


def assert_same_outputs(ours: nn.Module, theirs: nn.Module) -> None:
    """Both models compute the same, to 1e-5 of the largest output."""
    expected = outputs_of(theirs)
    assert max(x.std().item() for x in expected) > 0.1  # not two networks that compute nothing
    for one, other in zip(outputs_of(ours), expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5 * max(1.0, other.abs().max().item()))


# -- pages ------------------------------------------------------------------------------------------------------------


def table_cells(text: str, start: str = '') -> list[list[str]]:
    """The cells of all lines of Markdown's tables, or of those that start so."""
    lines = [line for line in text.splitlines() if line.startswith(f'| {start}' if start else '|')]
    return [[cell.strip() for cell in line.strip('|').split('|')] for line in lines]
