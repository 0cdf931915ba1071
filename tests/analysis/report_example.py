"""Results of an invented analysis, complete and consistent in itself, for tests of figures and report."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

from moe_det.analysis.figures import Pictures, crop_object, draw_boxes

SIZES = ('small', 'medium', 'large')
LEVEL_NAMES = ('P3', 'P4', 'P5', 'P6', 'P7', 'P8')
DEFINITIONS = {
    'object': "A ground truth, crowds excluded; its size is the annotation's area in original pixels.",
    'I(E;S)': 'Mutual information of the top-1 expert and the size class in bits, bias-corrected.',
    'I(E;S | level)': 'The same, inside each level, averaged over objects: what the level does not explain.',
    'V given level': "Cramér's V, bias-corrected, averaged over levels.",
    'p': 'Share of permutations of routing rows between images within a level that reach the information found.',
}


def make_example(
    layers: int = 2, experts: int = 4, levels: int = 5, *, seed: int = 0, favourites: int = 3, grid: int | None = None
) -> dict:
    """A full results dict; nothing in it was measured.

    Args:
        layers: number of MoE layers; the last of more than two has no pyramid level.
        experts: experts per layer.
        levels: pyramid levels.
        seed: of the random numbers.
        favourites: images and objects per expert.
        grid: patches per axis; None gives one routing row per level.
    """
    rng = np.random.default_rng(seed)
    names = ['bbox_head.cls', 'bbox_head.reg', 'backbone.layer4.1.conv2']
    made = []
    for i in range(layers):
        name = names[i] if i < len(names) else f'backbone.layer{i}.plugins.mixture_of_experts_block.{i}'
        flat = layers > 2 and i == layers - 1
        strength = 1.4 if i == 0 else 0.05
        made.append(_layer(rng, name, experts, 0 if flat else levels, strength, favourites, grid))
    objects = np.array(made[0]['expert_by_size']).sum(0)
    results = {
        'format': 1,
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
            'seed': 0,
            'permutations': 10000,
            'bootstrap': 10000,
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
        'ap': {'natural': _ap(rng), 'top_k': [{'k': k, **_ap(rng)} for k in range(1, min(experts, 4) + 1)]},
        'layers': made,
        'examples': [_example(rng, image, made, grid) for image in (11, 12)],
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


def _layer(
    rng: np.random.Generator, name: str, experts: int, levels: int, strength: float, favourites: int, grid: int | None
) -> dict:
    # objects per level and size as a pyramid has them: small ones below, large ones above
    shape = np.exp(-1.1 * np.abs(np.arange(max(levels, 1))[:, None] - 1.4 * np.arange(3)[None]))
    taste = rng.normal(size=(max(levels, 1), experts, 1)) + strength * rng.normal(size=(1, experts, 3))
    share = np.exp(taste) / np.exp(taste).sum(1, keepdims=True)
    table = rng.poisson(400 * shape[:, None, :] * share)
    counts = table.sum(0)
    base = counts.sum(1, keepdims=True) / counts.sum()
    lift = counts / counts.sum(0) / np.maximum(base, 1e-9)
    width = 2.0 / np.sqrt(np.maximum(counts, 1))
    specialised = strength > 1
    information = 0.083 if specialised else -0.0004
    unit = {
        'mi_bits': 0.171 if specialised else 0.144,
        'mi_given_level_bits': information,
        'mi_given_level_ci': [information - 0.012, information + 0.015],
        'p_value': 0.0001 if specialised else 0.4312,
        'cramers_v_given_level': 0.213 if specialised else 0.011,
        'expert_by_size': counts.tolist(),
        'n_objects': int(counts.sum()),
        'verdict': 'size-specialised' if specialised else 'level-specialised',
    }
    measured = ('mi_bits', 'mi_given_level_bits', 'mi_given_level_ci', 'p_value', 'cramers_v_given_level', 'verdict')
    words = (
        'Experts differ in the sizes they get beyond what the level explains.'
        if specialised
        else 'The level explains which expert gets which size; given the level nothing is left.'
    )
    return {
        'name': name,
        'unit': 'image' if not levels else 'patch' if grid else 'level',
        'grid': grid if levels else None,
        'num_experts': experts,
        'top_k': min(2, experts),
        'balance_over': 'level',
        'constraints': ['kl'],
        'levels': list(range(levels)),
        'main_unit': 'detection',
        'sentence': words,
        **{key: unit[key] for key in measured},
        'level_mi_bits': 0.0312 if specialised else 0.287,
        'null_99_bits': 0.0053,
        'p_value_holm': 0.0002 if specialised else 0.4312,
        'p_value_reason': None,
        'notes': [] if specialised else ['Two levels have fewer than ten images.'],
        'n_objects': int(counts.sum()),
        'n_images': 200,
        'expert_by_size': counts.tolist(),
        'lift': lift.tolist(),
        'lift_low': (lift * np.exp(-width)).tolist(),
        'lift_high': (lift * np.exp(width)).tolist(),
        'expert_by_level': table.sum(2).T.tolist() if levels else [[] for _ in range(experts)],
        'expert_by_size_by_level': table.tolist() if levels else [],
        'units': {
            'detection': unit,
            'training': {**unit, 'mi_bits': 0.152, 'expert_by_size': (counts * 0.731).round(2).tolist()},
            'image': {
                'spearman': [
                    {'level': level, 'expert': e, 'rho': float(rng.uniform(-0.6, 0.6)), 'p_value': 0.013, 'n': 200}
                    for level in (range(levels) if levels else [None])
                    for e in range(experts)
                ],
            },
        },
        'forced': [{'expert': e, **_ap(rng, -0.03)} for e in range(experts) if experts > 1],
        'knocked_out': [{'expert': e, **_ap(rng, -0.01)} for e in range(experts) if experts > 1],
        'counterfactual': {
            'agreement': 0.75,
            'agrees': True,
            'spread_AP_S': 0.023,
            'spread_AP_M': 0.011,
            'spread_AP_L': 0.018,
        },
        'utilisation': _usage(rng, experts, 1000),
        'utilisation_by_level': [{'level': i, **_usage(rng, experts, 200)} for i in range(levels)],
        'favourites': [_favourites(rng, e, favourites, levels) for e in range(experts)],
        'random_gate': {
            'mi_bits': 0.0011,
            'mi_given_level_bits': 0.0002,
            'p_value': 0.377,
            'cramers_v_given_level': 0.007,
            'verdict': 'not specialised',
        },
    }


def _ap(rng: np.random.Generator, shift: float = 0.0) -> dict:
    middle = {'AP': 0.384, 'AP50': 0.571, 'AP75': 0.406, 'AP_S': 0.212, 'AP_M': 0.419, 'AP_L': 0.503}
    return {name: float(value + shift + rng.normal(0, 0.012)) for name, value in middle.items()}


def _usage(rng: np.random.Generator, experts: int, rows: int) -> dict:
    share = rng.dirichlet(np.full(experts, 6.0))
    load = rng.dirichlet(np.full(experts, 6.0)) * experts
    return {
        'importance_share': share.tolist(),
        'load_ratio': load.tolist(),
        'living': int((share > 0.01).sum()),
        'row_entropy': 0.413,
        'batch_entropy': float(-(share * np.log2(share)).sum()),
        'rows': rows,
    }


def _favourites(rng: np.random.Generator, expert: int, number: int, levels: int) -> dict:
    ids = rng.integers(1, 12, number)
    objects = []
    for i in range(number):
        size = int(rng.integers(3))
        side = (18, 60, 140)[size]
        objects.append(
            {
                'annotation_id': 100 * expert + i,
                'image_id': int(ids[i]),
                'file_name': f'straße_{ids[i]:03d}.jpg',
                'bbox': [float(v) for v in (rng.integers(0, 460), rng.integers(0, 300), side, side * 0.8)],
                'area': float(side * side * 0.7),
                'size': SIZES[size],
                'category': ('dog', 'traffic light', 'café table')[size],
                'level': int(rng.integers(levels)) if levels else None,
                'weight': float(1 - 0.04 * i),
                'picture': None,
            }
        )
    images = [
        {'image_id': int(i), 'file_name': f'straße_{i:03d}.jpg', 'weight': float(0.97 - 0.05 * n), 'picture': None}
        for n, i in enumerate(ids)
    ]
    return {'expert': expert, 'images': images, 'objects': objects}


def _example(rng: np.random.Generator, image: int, layers: list[dict], grid: int | None) -> dict:
    shown = []
    for layer in layers:
        levels = []
        for level in layer['levels'] or [None]:
            patches = grid * grid if grid and layer['levels'] else 1
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
                'layers': {layer['name']: {key: layer[key] for key in keys} for layer in layers},
            }
            for seed in range(3)
        ],
        'layers': {
            layer['name']: {
                'agreeing': 3,
                'of': 3,
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
