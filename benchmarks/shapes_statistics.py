"""How object sizes depend on the image, in the synthetic shapes and in COCO: the table of moe_det.datasets.shapes.

python benchmarks/shapes_statistics.py [--coco JSON [JSON ...]]
"""

from __future__ import annotations

import json
from collections import defaultdict

import numpy as np
from common.options import parser_of

from moe_det.datasets.shapes_render import render_scene
from moe_det.datasets.shapes_scene import draw_scene

SEEDS, IMAGES, SIDE = (0, 1, 2), 300, 256
BOOTSTRAP = 2000


def intraclass_correlation(counts: np.ndarray, sums: np.ndarray, squares: np.ndarray) -> float:
    """ICC(1) of a one-way analysis of variance with unequal groups (Shrout and Fleiss 1979), from sums per group."""
    total, groups = counts.sum(), len(counts)
    correction = sums.sum() ** 2 / total
    explained = (sums**2 / counts).sum()
    between = (explained - correction) / (groups - 1)
    within = (squares.sum() - explained) / (total - groups)
    mean_count = (total - (counts**2).sum() / total) / (groups - 1)
    return float((between - within) / (between + (mean_count - 1) * within))


def report(name: str, groups: list[np.ndarray], bootstrap: bool = False) -> None:
    """Prints one line on the log sizes of the objects of each image."""
    groups = [np.asarray(group) for group in groups if len(group)]
    sums = np.array([[len(g), g.sum(), (g**2).sum()] for g in groups])
    line = f'{name:34} ICC {intraclass_correlation(*sums.T):5.2f}'
    if bootstrap:
        rng = np.random.default_rng(0)
        drawn = [intraclass_correlation(*sums[rng.integers(0, len(sums), len(sums))].T) for _ in range(BOOTSTRAP)]
        line += ' ({:.2f} to {:.2f})'.format(*np.quantile(drawn, (0.025, 0.975)))
    correlation = np.corrcoef(np.log(sums[:, 0]), sums[:, 1] / sums[:, 0])[0, 1]
    sizes = np.exp(np.concatenate(groups))
    shares = [(sizes <= 32).mean(), ((sizes > 32) & (sizes <= 96)).mean(), (sizes > 96).mean()]
    print(f'{line}, correlation {correlation:5.2f}, S/M/L {"/".join(f"{s:.0%}" for s in shares)}, {len(sizes)} objects')


def shapes(scene_scale: float, seed: int) -> list[list[float]]:
    """Log of the square root of every visible area, by image."""
    found = []
    for index in range(IMAGES):
        rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(0, index)))
        _, instances = render_scene(rng, draw_scene(rng, SIDE, scene_scale), SIDE)
        found.append([0.5 * np.log(i.mask.sum()) for i in instances if not i.crowd])
    return found


def coco(path: str) -> list[list[float]]:
    """Likewise for a COCO json."""
    with open(path, encoding='utf-8') as file:
        annotations = json.load(file)['annotations']
    found = defaultdict(list)
    for annotation in annotations:
        if not annotation.get('iscrowd') and annotation['area'] > 0:
            found[annotation['image_id']].append(0.5 * np.log(annotation['area']))
    return list(found.values())


def main() -> None:
    """Prints the table."""
    parser = parser_of(__doc__)
    parser.add_argument('--coco', nargs='+', default=[], metavar='JSON', help='annotation files, taken together')
    args = parser.parse_args()
    if args.coco:
        report(f'{len(args.coco)} COCO files', [group for path in args.coco for group in coco(path)], bootstrap=True)
    for scene_scale in (0.0, 0.4, 1.0):
        for seed in SEEDS:
            report(f'scene_scale {scene_scale:g}, seed {seed}', shapes(scene_scale, seed))


if __name__ == '__main__':
    main()
