"""Results of an invented analysis, complete and consistent in itself, for tests of figures and report."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw
from report.report_example_layer import SIZES, invented_precisions, invented_swap, make_layer

from moe_det.analysis.definitions import DEFINITIONS
from moe_det.figures import Pictures, crop_object, draw_boxes

LEVEL_NAMES = ('P3', 'P4', 'P5', 'P6', 'P7', 'P8')
THIRDS = ('lower third', 'middle third', 'upper third')


def make_example(
    layers: int = 2,
    experts: int = 4,
    levels: int = 5,
    *,
    seed: int = 0,
    favourites: int = 3,
    grid: int | None = None,
    verdicts: Sequence[str] = ('size-specialised', 'level-specialised', 'scale-specialised'),
) -> dict:
    """A full results dict; nothing in it was measured.

    Args:
        layers: number of MoE layers; the last of more than two decides once for all levels.
        experts: experts per layer.
        levels: pyramid levels.
        seed: of the random numbers.
        favourites: images and objects per expert.
        grid: patches per axis; None gives one routing row per level.
        verdicts: of the layers, from the first on; further layers are level-specialised.
    """
    rng = np.random.default_rng(seed)
    names = ['bbox_head.cls', 'bbox_head.reg', 'backbone.layer4.1.conv2']
    made = []
    for i in range(layers):
        name = names[i] if i < len(names) else f'backbone.layer{i}.plugins.mixture_of_experts_block.{i}'
        flat = layers > 2 and i == layers - 1
        verdict = verdicts[i] if i < len(verdicts) else 'level-specialised'
        made.append(make_layer(rng, name, experts, levels, flat, verdict, favourites, grid))
    objects = np.array(made[0]['expert_by_size']).sum(0)
    results = {
        'format': 2,
        'title': 'Size specialisation of an invented detector',
        'definitions': dict(DEFINITIONS),
        'provenance': {
            'config': 'configs/shapes/retinanet_moe_soft.py',
            'checkpoint': 'work_dirs/invented/epoch_12.pth',
            'checkpoint_sha256': '9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08',
            'ann_file': 'data/shapes/val.json',
            'images': 200,
            'objects': int(objects.sum()) + 61,
            'crowds_excluded': 4,
            'matched': int(objects.sum()),
            'groups': None,
            'seed': 0,
            'permutations': 10000,
            'bootstrap': 10000,
            'swap_draws': 5,
            'random_gates': 200,
            'resamples': 200,
            'area_ranges': [32, 96],
            'versions': {'moe_det': '0.1.0', 'torch': '2.10.0', 'mmdet': '3.5.1', 'numpy': '2.2.6', 'python': '3.11.9'},
            'device': 'cpu',
            'command': 'python tools/analysis_tools/size_specialization.py configs/shapes/retinanet_moe_soft.py a.pth',
            'date': '2024-01-01T12:00:00+00:00',
            'seconds': 93.2,
        },
        'sizes': [
            {'name': name, 'low': low, 'high': high, 'objects': int(n) + 20, 'matched': int(n)}
            for name, low, high, n in zip(SIZES, (0, 1024, 9216), (1024, 9216, 1e10), objects, strict=True)
        ],
        'levels': [
            {'index': i, 'name': LEVEL_NAMES[i], 'stride': 8 << i, 'objects': int(n)}
            for i, n in enumerate(np.array(made[0]['expert_by_level']).sum(0) if levels else [])
        ],
        'relative_sizes': {
            'names': list(THIRDS),
            'limits': [{'level': i, 'areas': [float(300 * 4**i), float(700 * 4**i)]} for i in range(levels)],
        },
        'swap': invented_swap(rng, 0.031),
        'ap': {
            'natural': invented_precisions(rng),
            'top_k': [{'k': k, **invented_precisions(rng)} for k in range(1, min(experts, 4) + 1)],
        },
        'layers': made,
        'examples': [_example(rng, image, made) for image in (11, 12)],
        'seeds': None,
        'notes': ['The results are invented.'],
    }
    results['seeds'] = _seeds(rng, made)
    return results


def add_pictures(results: dict, pictures: Pictures) -> None:
    """Draws an invented photograph for every image of the results; favourite objects become objects of it."""
    rng = np.random.default_rng(5)
    known = {}

    def photograph(image_id: int) -> tuple:
        if image_id not in known:
            known[image_id] = _photograph(rng)
        return known[image_id]

    def whole(image_id: int) -> str:
        return pictures.save(f'image-{image_id}', draw_boxes(*photograph(image_id)))

    for layer in results['layers']:
        for entry in layer['favourites']:
            for item in entry['images']:
                item['picture'] = whole(item['image_id'])
            for item in entry['objects']:
                image, boxes, sizes = photograph(item['image_id'])
                index = item['annotation_id'] % len(boxes)
                item.update(bbox=boxes[index], size=SIZES[sizes[index]], area=0.785 * boxes[index][2] ** 2)
                cut = crop_object(image, boxes[index], size=sizes[index])
                item['picture'] = pictures.save(f'object-{item["image_id"]}-{index}', cut)
    for example in results['examples']:
        example['picture'] = whole(example['image_id'])


def _example(rng: np.random.Generator, image: int, layers: list[dict]) -> dict:
    shown = []
    for layer in layers:
        levels = []
        for level in [0] if layer['unit'] == 'image' else layer['levels']:
            patches = layer['grid'] ** 2 if layer['grid'] else 1
            weights = np.zeros((patches, layer['num_experts']))
            for row in weights:
                chosen = rng.permutation(layer['num_experts'])[:2]
                row[chosen] = rng.dirichlet(np.full(len(chosen), 2.0))
            levels.append({'level': level, 'weights': weights.tolist()})
        shown.append({'name': layer['name'], 'levels': levels})
    return {'image_id': image, 'file_name': f'straße_{image:03d}.jpg', 'picture': None, 'objects': 9, 'layers': shown}


def _seeds(rng: np.random.Generator, layers: list[dict]) -> dict:
    keys = ('verdict', 'mi_given_level_bits', 'p_value_holm')
    orders = [list(range(layers[0]['num_experts']))] * 3
    return {
        'checkpoints': [
            {
                'checkpoint': f'work_dirs/invented_{seed}/epoch_12.pth',
                'seed': seed,
                'AP': float(0.384 + rng.normal(0, 0.002)),
                'layers': {
                    layer['name']: {
                        **{key: layer[key] for key in keys},
                        'relative_bits': layer['relative_size']['mi_bits'],
                        'relative_p_value_holm': layer['relative_size']['p_value_holm'],
                    }
                    for layer in layers
                },
            }
            for seed in range(3)
        ],
        'layers': {
            layer['name']: {
                'agreeing': 3,
                'of': 3,
                'runs': 3,
                'p_value': 0.0123,
                'verdict': 'established',
                'sentence': layer['sentence'],
                'alignment': orders,
            }
            for layer in layers
        },
    }


def _photograph(rng: np.random.Generator) -> tuple:
    """An image with objects of all sizes, their boxes and the indices of their sizes."""
    shade = np.linspace(90, 190, 360)[:, None, None] + rng.normal(0, 6, (360, 480, 3))
    image = Image.fromarray(np.clip(shade, 0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    boxes, sizes = [], []
    for size, side in ((0, 18), (0, 24), (0, 14), (1, 60), (1, 80), (2, 150)):
        x, y = int(rng.integers(0, 480 - side)), int(rng.integers(0, 360 - side))
        colour = tuple(int(c) for c in rng.integers(0, 255, 3))
        draw.ellipse([x, y, x + side, y + side], fill=colour)
        boxes.append([x, y, side, side])
        sizes.append(size)
    return image, boxes, sizes
