"""An invented layer for the results of :mod:`tests.report.report_example`, with any of the verdicts."""

from __future__ import annotations

from math import erf, sqrt

import numpy as np

from moe_det.analysis.sentences import layer_sentence, plain_sentence

SIZES = ('small', 'medium', 'large')
AP_NAMES = ('AP', 'AP_S', 'AP_M', 'AP_L')
# of an invented layer by its verdict: does it sort, more than random gates do, and what does a swap cost
CASES = {
    'size-specialised': {'sorts': True, 'beyond': True, 'loss': 0.024},
    'size-sorted': {'sorts': True, 'beyond': True, 'loss': 0.0},
    'specialised, not by size': {'sorts': False, 'beyond': False, 'loss': 0.012},
    'scale-specialised': {'sorts': False, 'beyond': False, 'loss': 0.0},
    'level-specialised': {'sorts': False, 'beyond': False, 'loss': 0.0},
    'not specialised': {'sorts': False, 'beyond': False, 'loss': 0.0},
    'undetermined': {'sorts': None, 'beyond': None, 'loss': None},
}
TOO_FEW = 'only 9 of 125 objects are matched, in 6 images: fewer than 10 images'


def make_layer(
    rng: np.random.Generator,
    name: str,
    experts: int,
    levels: int,
    flat: bool,
    verdict: str,
    favourites: int,
    grid: int | None,
) -> dict:
    """A layer of the results with what its verdict needs; see :func:`tests.report.report_example.make_example`.

    Args:
        rng: random numbers.
        name: of the layer.
        experts: E.
        levels: pyramid levels.
        flat: it decides once for all levels.
        verdict: a key of :data:`CASES`.
        favourites: images and objects per expert.
        grid: patches per axis, or None.
    """
    case = CASES[verdict]
    # objects per level and size as a pyramid has them: small ones below, large ones above
    shape = np.exp(-1.1 * np.abs(np.arange(max(levels, 1))[:, None] - 1.4 * np.arange(3)[None]))
    strength = 1.4 if case['sorts'] else 0.05
    taste = rng.normal(size=(1 if flat else max(levels, 1), experts, 1)) + strength * rng.normal(size=(1, experts, 3))
    share = _softmax(taste)
    table = rng.poisson(400 * shape[:, None, :] * share)
    counts = table.sum(0)
    base = counts.sum(1, keepdims=True) / counts.sum()
    lift = counts / counts.sum(0) / np.maximum(base, 1e-9)
    width = 2.0 / np.sqrt(np.maximum(counts, 1))
    detection = _unit(rng, counts, table, case, verdict, 0.0)
    training = _unit(rng, (counts * 0.731).round(2), table, case, verdict, -0.012 if case['sorts'] else -0.003)
    gates = _random_gates(rng, training['relative_size']['mi_bits'], case['beyond'])
    swap = None if case['loss'] is None else invented_swap(rng, case['loss'])
    layer = {
        'name': name,
        'unit': 'image' if flat else 'patch' if grid else 'level',
        'grid': None if flat else grid,
        'num_experts': experts,
        'top_k': min(2, experts),
        'balance_over': 'level',
        'constraints': ['kl'],
        'levels': list(range(levels)),
        'main_unit': 'detection',
        **{key: value for key, value in detection.items() if key != 'sorts'},
        'verdict': verdict,
        'level_mi_bits': 0.287 if verdict == 'level-specialised' else 0.0312,
        'level_p_value': 0.0002 if verdict == 'level-specialised' else 0.21,
        'notes': [] if case['sorts'] else ['Two levels have fewer than ten images.'],
        'n_images': 200,
        'lift': lift.tolist(),
        'lift_low': (lift * np.exp(-width)).tolist(),
        'lift_high': (lift * np.exp(width)).tolist(),
        'expert_by_level': table.sum(2).T.tolist(),
        'expert_by_size_by_level': table.tolist(),
        'units': {
            'detection': detection,
            'training': training,
            'image': {
                'spearman': [
                    {'level': level, 'expert': e, 'rho': float(rng.uniform(-0.6, 0.6)), 'p_value': 0.013, 'n': 200}
                    for level in ([None] if flat else range(levels))
                    for e in range(experts)
                ],
            },
        },
        'random_gates': gates,
        'random_gates_reason': None if gates else TOO_FEW,
        'swap': swap,
        'swap_reason': None if swap else 'asked for no draws',
        'routes': _routes(rng, experts, flat) if swap else None,
        'forced': [{'expert': e, **invented_precisions(rng, -0.03)} for e in range(experts) if experts > 1],
        'knocked_out': [{'expert': e, **invented_precisions(rng, -0.01)} for e in range(experts) if experts > 1],
        'counterfactual': {
            'agreement': 0.75,
            'agrees': True,
            'spread_AP_S': 0.023,
            'spread_AP_M': 0.011,
            'spread_AP_L': 0.018,
        },
        'utilisation': _usage(rng, experts, 1000),
        'utilisation_by_level': [] if flat else [{'level': i, **_usage(rng, experts, 200)} for i in range(levels)],
        'favourites': [_favourites(rng, e, favourites, levels) for e in range(experts)],
    }
    layer.update(plain=plain_sentence(layer), sentence=layer_sentence(layer))
    return layer


def _softmax(logits: np.ndarray) -> np.ndarray:
    """Over experts, the second axis."""
    return np.exp(logits) / np.exp(logits).sum(1, keepdims=True)


def _unit(
    rng: np.random.Generator, counts: np.ndarray, table: np.ndarray, case: dict, verdict: str, shift: float
) -> dict:
    """What was measured in one unit; ``shift`` bits more than in the detection unit."""
    undetermined = verdict == 'undetermined'
    information = (0.083 if case['sorts'] else 0.0074) + shift
    scale = verdict == 'scale-specialised'
    thirds = _thirds(rng, counts.sum(1))
    p_value = None if undetermined else 0.0001 if case['sorts'] else 0.4312
    return {
        'mi_bits': 0.171 + shift if scale or case['sorts'] else 0.144 + shift,
        'mi_p_value': 0.0001 if scale else None,  # only where an image has one decision for all levels
        'mi_cramers_v': 0.312 if scale else None,
        'mi_given_level_bits': 0.0121 if case['sorts'] else -0.0004,
        'mi_given_level_ci': None if undetermined else [-0.0021, 0.0263],
        'null_99_bits': 0.0053,
        'p_value': None if undetermined else 0.0314 if case['sorts'] else 0.5312,
        'p_value_holm': None if undetermined else 0.0628 if case['sorts'] else 1.0,
        'p_value_reason': TOO_FEW if undetermined else None,
        'cramers_v_given_level': 0.143 if case['sorts'] else 0.011,
        'ceiling_bits': _entropy_given_level(table),
        'relative_size': {
            'mi_bits': information,
            'mi_ci': None if undetermined else [information - 0.012, information + 0.015],
            'p_value': p_value,
            'p_value_holm': None if undetermined else min(1.0, 2 * p_value),
            'p_value_reason': TOO_FEW if undetermined else None,
            'cramers_v': 0.213 if case['sorts'] else 0.031,
            'ceiling_bits': 1.5846,
            'null_99_bits': 0.0153,
            'expert_by_size': thirds.tolist(),
        },
        'expert_by_size': counts.tolist(),
        'n_objects': int(round(counts.sum())),
        'sorts': case['sorts'],
    }


def _thirds(rng: np.random.Generator, of_expert: np.ndarray) -> np.ndarray:
    """(E, 3) objects: rows sum to the experts' objects, columns to about a third of all."""
    table = np.exp(0.6 * rng.normal(size=(len(of_expert), 3)))
    for _ in range(50):
        table *= (of_expert / table.sum(1))[:, None]
        table *= of_expert.sum() / 3 / table.sum(0)
    table = table.round()
    table[:, 2] = of_expert.round() - table[:, :2].sum(1)
    return table


def _entropy_given_level(table: np.ndarray) -> float:
    """H(S | level) in bits of (L, E, S) objects."""
    sizes = table.sum(1)
    share = sizes / np.maximum(sizes.sum(1, keepdims=True), 1)
    per_level = -(share * np.log2(np.where(share > 0, share, 1))).sum(1)
    return float((per_level * sizes.sum(1)).sum() / sizes.sum())


def _random_gates(rng: np.random.Generator, bits: float, beyond: bool | None) -> dict | None:
    if beyond is None:
        return None
    middle = max(0.5 * bits if beyond else 1.2 * bits, 0.01)
    drawn = np.sort(rng.gamma(9.0, middle / 9.0, 200) - 0.002)
    low, high = np.quantile(drawn, (0.025, 0.975))
    return {
        'count': len(drawn),
        'quantile': float((drawn < bits).mean()),
        'median_bits': float(np.median(drawn)),
        'bits': bits,
        'low_bits': float(low),
        'high_bits': float(high),
        'values': drawn.tolist(),
    }


def _difference(rng: np.random.Generator, difference: float, width: float = 0.005) -> dict:
    difference += float(rng.normal(0, 0.0004))
    p_value = 0.5 * (1 + erf(difference / (width / 1.96) / sqrt(2)))
    return {'difference': difference, 'interval': [difference - width, difference + width], 'p_value': p_value}


def invented_swap(rng: np.random.Generator, loss: float) -> dict:
    """Most is lost for large objects; ``loss`` is that of AP, from 0 to 1."""
    parts = {'AP': 1, 'AP_S': 0.5, 'AP_M': 0.8, 'AP_L': 2.6, 'AP_lower': 0.6, 'AP_middle': 0.9, 'AP_upper': 1.7}
    found = {name: _difference(rng, -part * loss, 0.009 if name == 'AP_L' else 0.005) for name, part in parts.items()}
    lost = [name for name in AP_NAMES if found[name]['interval'][1] < 0]
    return {'draws': 5, 'images': 198, 'images_left': 2, 'costs': bool(lost), 'sizes_that_lose': lost, **found}


def _routes(rng: np.random.Generator, experts: int, flat: bool) -> dict:
    def measures(shift: float) -> dict:
        return {name: _difference(rng, shift * part) for name, part in zip(AP_NAMES, (1, 0.6, 1.1, 1.4), strict=True)}

    return {
        'between_levels': None if flat else measures(-0.043),
        'fixed': {'experts': list(range(min(2, experts))), **measures(-0.017)},
        'best_per_image': {'candidates': 6, **measures(0.021)} if experts > 1 else None,
    }


def invented_precisions(rng: np.random.Generator, shift: float = 0.0) -> dict:
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
