"""Does the size-specialisation test hold its promises? Routers whose truth is known, on simulated scenes.

Objects look like COCO's: size and feature level nearly coincide, sizes of one image agree (scene scale), images hold
from one to very many objects. Routers that know nothing of size given the level must be called significant in 1 % of
the simulations at p <= 0.01, routers with Cramer's V = 0.2 given the level must be found in 99 %. Tests that are not
used are run on the same data, to show why.

    python benchmarks/planted_routers.py            # 1,000 simulations per router
    python benchmarks/planted_routers.py --quick    # 100, and nothing is written unless --out says where
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path

import numpy as np
import scipy
from scipy.stats import beta, chi2

from moe_det.analysis import measure_specialization, size_bins
from moe_det.analysis.information import (
    chance_corrected_v,
    conditional_mutual_information,
    largest_contingency,
    mean_square_contingency,
)
from moe_det.analysis.permutation import permuted_tables, upper_tail
from moe_det.analysis.rows import gather_rows

RECORD = Path(__file__).parent / 'records' / 'planted_routers.json'
ALPHA, E, S, L = 0.01, 4, 3, 5

# share of an object's positive RetinaNet anchors by level, P3 to P7, for sides from SIDES[i] pixels on
# (simulated boxes in 640 x 480 images, resized to 1067 x 800)
SIDES = np.array([0, 24, 32, 48, 64, 96, 140, 220])
LEVEL_SHARES = np.array(
    [
        [1, 0, 0, 0, 0],
        [0.93, 0.07, 0, 0, 0],
        [0.38, 0.62, 0, 0, 0],
        [0, 0.94, 0.06, 0, 0],
        [0, 0.5, 0.5, 0, 0],
        [0, 0, 0.9, 0.1, 0],
        [0, 0, 0.26, 0.74, 0],
        [0, 0, 0, 0.55, 0.45],
    ]
)


@dataclass(frozen=True)
class Scenes:
    """Objects of some images: image, level, size and patch of each, and the scale of each image's scene."""

    image: np.ndarray
    level: np.ndarray
    size: np.ndarray
    patch: np.ndarray
    scale: np.ndarray

    def counts(self) -> np.ndarray:
        """(N, L, S) objects."""
        counts = np.zeros((len(self.scale), L, S))
        np.add.at(counts, (self.image, self.level, self.size), 1)
        return counts


def coco_like(rng, images: int, mean: float = 7.3, evenness: float = 1.0, agreement: float = 0.4) -> Scenes:
    """Scenes with COCO's sizes (about 43, 39 and 18 % small, medium and large).

    Args:
        rng: source of randomness.
        images: N.
        mean: objects per image.
        evenness: shape of the gamma distribution of the images' rates; small values make few images hold most objects.
        agreement: share of the variance of log side that the images of a scene have in common.
    """
    rate = mean * rng.gamma(evenness, 1 / evenness, images)
    image = np.repeat(np.arange(images), 1 + rng.poisson(np.maximum(rate - 1, 0.2)))
    n = len(image)
    scale = rng.normal(0, 1, images)
    side = np.exp(np.log(45) + np.sqrt(agreement) * scale[image] + np.sqrt(1 - agreement) * rng.normal(size=n))
    side = np.clip(side, 8, 400)
    shares = LEVEL_SHARES[np.searchsorted(SIDES, side, side='right') - 1]
    level = np.minimum((rng.random(n)[:, None] > shares.cumsum(1)).sum(1), L - 1)
    size = size_bins(side**2 * rng.uniform(0.45, 1, n))  # a mask fills part of its box
    # the lower half of an image shows what is near, hence large
    patch = rng.integers(2, size=n) + 2 * (rng.random(n) < 0.3 + 0.2 * size)
    return Scenes(image, level, size, patch, scale)


def full_scenes(rng, images: int) -> Scenes:
    """Every image has four objects at every level, and the scene's scale tells most of their sizes: the worst case."""
    image, level = (np.repeat(values, 4) for values in np.divmod(np.arange(images * L), L))
    scale = rng.normal(size=images)
    size = np.digitize(scale[image] + 0.7 * rng.normal(size=len(image)), [-0.5, 0.5])
    return Scenes(image, level, size, np.zeros_like(image), scale)


# -- routers: scenes -> the arguments of measure_specialization that describe the routing ---------------------------


def random_router(rng, scenes: Scenes) -> dict:
    """Every row draws its expert."""
    rows = rng.integers(E, size=(len(scenes.scale), L))
    return {'levels': scenes.level, 'experts': rows[scenes.image, scenes.level]}


def level_router(rng, scenes: Scenes) -> dict:
    """The level names the expert, one row in five draws it."""
    shape = len(scenes.scale), L
    rows = np.where(rng.random(shape) < 0.2, rng.integers(E, size=shape), np.arange(L) % E)
    return {'levels': scenes.level, 'experts': rows[scenes.image, scenes.level]}


def property_router(rng, scenes: Scenes) -> dict:
    """A property of the image, such as its brightness, names one expert for all its levels."""
    return {'levels': scenes.level, 'experts': rng.integers(E, size=len(scenes.scale))[scenes.image]}


def noisy_property_router(rng, scenes: Scenes) -> dict:
    """Rows read the image's property with noise, and each level has thresholds of its own."""
    reading = rng.normal(size=(len(scenes.scale), 1)) + 0.7 * rng.normal(size=(len(scenes.scale), L))
    rows = (reading[..., None] > np.linspace(-1, 1, E - 1) + 0.3 * np.arange(L)[:, None] - 0.6).sum(-1)
    return {'levels': scenes.level, 'experts': rows[scenes.image, scenes.level]}


def crowding_router(rng, scenes: Scenes) -> dict:
    """The number of objects in the image names the expert of all its rows."""
    rank = np.argsort(np.argsort(np.bincount(scenes.image) + rng.random(len(scenes.scale))))
    return {'levels': scenes.level, 'experts': (rank * E // len(rank))[scenes.image]}


def image_router(rng, scenes: Scenes) -> dict:
    """One decision for all levels of an image, reported as one."""
    return {**property_router(rng, scenes), 'levels': np.zeros_like(scenes.level)}


def patch_router(rng, scenes: Scenes) -> dict:
    """Rows of 2 x 2 patches read their position and the image's property."""
    shape = len(scenes.scale), L, 4
    prior = rng.integers(E, size=(len(scenes.scale), 1, 1))
    rows = np.where(rng.random(shape) < 0.4, np.broadcast_to(np.arange(4) // 2, shape), prior)
    return {
        'levels': scenes.level,
        'patches': scenes.patch,
        'experts': rows[scenes.image, scenes.level, scenes.patch],
    }


def soft_router(rng, scenes: Scenes) -> dict:
    """Random weights over two of the experts."""
    logits = 2 * rng.normal(size=(len(scenes.scale), L, E))
    weights = np.exp(np.where(logits >= np.sort(logits)[..., -2:-1], logits, -np.inf))
    return {
        'levels': scenes.level,
        'experts': (weights / weights.sum(-1, keepdims=True))[scenes.image, scenes.level],
    }


def size_router(strength: float) -> Callable[..., dict]:
    """With probability ``strength`` a row's expert is the most frequent size of its objects, else it is drawn."""

    def route(rng, scenes: Scenes) -> dict:
        counts = scenes.counts()
        drawn = rng.integers(E, size=counts.shape[:2])
        rows = np.where(rng.random(drawn.shape) < strength, counts.argmax(2), drawn)
        return {'levels': scenes.level, 'experts': rows[scenes.image, scenes.level]}

    return route


def planted_truth(strength: float, scenes: Scenes) -> tuple[float, float]:
    """V and I(E;S | level) of the size router: tables of expected counts over very many images hold no noise."""
    counts = scenes.counts()
    masses = strength * np.eye(E)[counts.argmax(2)] + (1 - strength) / E
    tables = np.einsum('nle,nls->les', masses, counts)
    v = chance_corrected_v(float(mean_square_contingency(tables)), 0.0, largest_contingency(tables))
    return v, float(conditional_mutual_information(tables))


def strength_for(v: float, scenes: Scenes) -> float:
    """The strength of the size router whose V given the level is ``v``, by bisection."""
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if planted_truth(middle, scenes)[0] < v else (low, middle)
    return low


# -- tests that are not used, for comparison ------------------------------------------------------------------------


def chi_square_p(tables: np.ndarray) -> float:
    """p-value of the chi-squares of a stack of tables, as if objects were independent."""
    rows, columns = (tables.sum(2) > 0).sum(1), (tables.sum(1) > 0).sum(1)
    freedom = int((np.maximum(rows - 1, 0) * np.maximum(columns - 1, 0)).sum())
    return float(chi2.sf(mean_square_contingency(tables) * tables.sum(), freedom)) if freedom else 1.0


def levels_apart_p(scenes: Scenes, routing: dict, permutations: int, rng) -> float:
    """p-value when every level is permuted on its own: an image's rows do not travel together."""
    arrays = {'image_ids': scenes.image, 'sizes': scenes.size, **routing}
    null, observed = [], []
    for level in np.unique(routing['levels']):
        at = routing['levels'] == level
        if np.ptp(scenes.size[at]) == 0:
            continue  # nothing to learn about size here, whatever the expert
        rows = gather_rows(**{name: values[at] for name, values in arrays.items()}, num_experts=E, num_sizes=S)
        null.append(permuted_tables(rows, permutations, rng))
        observed.append(rows.image_tables().sum(0))
    statistic = conditional_mutual_information(np.concatenate(observed))
    return upper_tail(float(statistic), conditional_mutual_information(np.concatenate(null, 1)))[0]


# -- the study ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """A router on scenes of one kind."""

    name: str
    route: Callable[..., dict]
    scenes: Callable[..., Scenes]
    planted: bool = False
    options: dict = field(default_factory=dict)


def cases(strength: float) -> list[Case]:
    """All routers; ``strength`` is that of the size router."""
    few = {'images': 40, 'evenness': 0.3}
    one_scale = {'images': 100, 'mean': 15, 'agreement': 0.8}
    return [
        Case('random', random_router, coco_like, options={'images': 100}),
        Case('random, 40 uneven images', random_router, coco_like, options=few),
        Case('level only', level_router, coco_like, options={'images': 100}),
        Case('level only, 40 uneven images', level_router, coco_like, options=few),
        Case('image property, one scale per image', property_router, coco_like, options=one_scale),
        Case('noisy image property, one scale per image', noisy_property_router, coco_like, options=one_scale),
        Case('image property, all levels full', property_router, full_scenes, options={'images': 60}),
        Case('number of objects, uneven images', crowding_router, coco_like, options={'images': 100, 'evenness': 0.3}),
        Case('one decision per image', image_router, coco_like, options={'images': 100}),
        Case('2 x 2 patches: position and image property', patch_router, coco_like, options={'images': 100}),
        Case('random soft weights', soft_router, coco_like, options={'images': 100}),
        Case('size, V = 0.2', size_router(strength), coco_like, True, {'images': 300}),
    ]


def rate(hits: list[bool]) -> dict:
    """Share of hits with its 95 % binomial interval (Clopper and Pearson)."""
    n, k = len(hits), int(sum(hits))
    low = float(beta.ppf(0.025, k, n - k + 1)) if k else 0.0
    high = float(beta.ppf(0.975, k + 1, n - k)) if k < n else 1.0
    return {'share': k / n, 'low': low, 'high': high, 'hits': k, 'of': n}


def study(case: Case, simulations: int, permutations: int, seed: int) -> dict:
    """Runs one router many times."""
    found: dict[str, list[bool]] = {}
    verdicts: dict[str, int] = {}
    effect, no_p = [], 0
    start = time.perf_counter()
    for simulation in range(simulations):
        rng = np.random.default_rng([seed, simulation])
        scenes = case.scenes(rng, **case.options)
        routing = case.route(rng, scenes)
        result = measure_specialization(
            scenes.image,
            sizes=scenes.size,
            num_experts=E,
            num_sizes=S,
            permutations=permutations,
            bootstrap=0,
            seed=simulation,
            **routing,
        )
        no_p += result.p_value is None
        effect.append(result.cramers_v_given_level)
        verdicts[result.verdict] = verdicts.get(result.verdict, 0) + 1
        tables = result.expert_by_size_by_level.transpose(2, 0, 1)
        p_values = {
            'p <= 0.01': result.p_value,
            'chi-square of objects': chi_square_p(tables.sum(0)[None]),
            'chi-square of objects within levels': chi_square_p(tables),
            'levels permuted apart': levels_apart_p(scenes, routing, permutations, rng),
        }
        for name, p_value in p_values.items():
            found.setdefault(name, []).append(p_value is not None and p_value <= ALPHA)
        found.setdefault('size-specialised', []).append(result.verdict == 'size-specialised')
    return {
        'router': case.name,
        'planted': case.planted,
        'scenes': {'kind': case.scenes.__name__, **case.options},
        'rates': {name: rate(hits) for name, hits in found.items()},
        'verdicts': verdicts,
        'without_p_value': no_p,
        'mean_v_given_level': float(np.mean(effect)),
        'seconds': round(time.perf_counter() - start, 1),
    }


def coverage(strengths: dict[str, tuple[float, float]], simulations: int, seed: int) -> list[dict]:
    """How often the 95 % interval of I(E;S | level) holds the truth; 0.0 is the random router."""
    records = []
    for name, (strength, truth) in strengths.items():
        hits, widths, errors = [], [], []
        for simulation in range(simulations):
            rng = np.random.default_rng([seed, simulation])
            scenes = coco_like(rng, 300)
            routing = size_router(strength)(rng, scenes)
            result = measure_specialization(
                scenes.image,
                sizes=scenes.size,
                num_experts=E,
                num_sizes=S,
                permutations=199,
                bootstrap=500,
                seed=simulation,
                **routing,
            )
            if result.mi_given_level_ci is not None:
                low, high = result.mi_given_level_ci
                hits.append(low <= truth <= high)
                widths.append(high - low)
                errors.append(result.mi_given_level_bits - truth)
        records.append(
            {
                'router': name,
                'truth_bits': truth,
                'covered': rate(hits),
                'mean_width_bits': float(np.mean(widths)),
                'mean_error_bits': float(np.mean(errors)),
                'images': 300,
            }
        )
    return records


def machine() -> dict:
    """What the numbers were made on."""
    from moe_det.engine.software import cores, processor

    return {
        'cpu': processor(),
        'cores': cores(),
        'python': platform.python_version(),
        'numpy': np.__version__,
        'scipy': scipy.__version__,
        'date': date.today().isoformat(),
    }


def markdown(record: dict) -> str:
    """The record as two tables."""
    columns = list(record['routers'][0]['rates'])
    lines = [
        '# Planted routers',
        '',
        f'{record["simulations"]} simulations per router, {record["permutations"]} permutations each, '
        f'`{record["command"]}`, {record["seconds"]} s ({record["cpu_seconds"]} s of one core) on '
        f'{record["machine"]["cpu"]}, {record["machine"]["cores"]} cores, Python {record["machine"]["python"]}, '
        f'numpy {record["machine"]["numpy"]}, scipy {record["machine"]["scipy"]}, '
        f'{record["machine"]["date"]}.',
        '',
        'Share of simulations in %, with the 95 % binomial interval. `size-specialised` is the verdict, `p <= 0.01` '
        'its significance alone; the other columns are tests that are not used.',
        '',
        '| router | images | truth | ' + ' | '.join(columns) + ' |',
        '|---' * (len(columns) + 3) + '|',
    ]
    for router in record['routers']:
        rates = [
            f'{100 * r["share"]:.1f} ({100 * r["low"]:.1f} to {100 * r["high"]:.1f})' for r in router['rates'].values()
        ]
        truth = 'size' if router['planted'] else 'no size'
        lines.append(f'| {router["router"]} | {router["scenes"]["images"]} | {truth} | ' + ' | '.join(rates) + ' |')
    lines += [
        '',
        'How often the 95 % interval of I(E;S given level) holds the truth:',
        '',
        '| router | images | truth (bits) | covered, % | mean width (bits) | mean error (bits) |',
        '|---|---|---|---|---|---|',
    ]
    for entry in record['intervals']:
        r = entry['covered']
        lines.append(
            f'| {entry["router"]} | {entry["images"]} | {entry["truth_bits"]:.4f} | '
            f'{100 * r["share"]:.1f} ({100 * r["low"]:.1f} to {100 * r["high"]:.1f}) | '
            f'{entry["mean_width_bits"]:.4f} | {entry["mean_error_bits"]:+.4f} |'
        )
    return '\n'.join(lines) + '\n'


def main() -> None:
    """Runs the study, prints the tables and writes the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--quick', action='store_true', help='100 simulations instead of 1,000')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--out', type=Path, help=f'the record, .json and .md (default {RECORD.name})')
    args = parser.parse_args()
    simulations, permutations = (100, 199) if args.quick else (1000, 999)

    start, start_cpu = time.perf_counter(), time.process_time()
    many = coco_like(np.random.default_rng(args.seed), 50000)
    strengths = {f'size, V = {v}': strength_for(v, many) for v in (0.1, 0.2, 0.4)}
    truths = {name: (s, planted_truth(s, many)[1]) for name, s in strengths.items()}
    routers = []
    for number, case in enumerate(cases(strengths['size, V = 0.2'])):
        routers.append(study(case, simulations, permutations, args.seed + number))
        rates = ', '.join(f'{name} {100 * r["share"]:.1f} %' for name, r in routers[-1]['rates'].items())
        print(f'{case.name}: {rates} ({routers[-1]["seconds"]} s)', flush=True)
    intervals = coverage({'random': (0.0, 0.0), **truths}, simulations // 4, args.seed)
    record = {
        'command': ' '.join(['python', 'benchmarks/planted_routers.py', *sys.argv[1:]]),
        'machine': machine(),
        'simulations': simulations,
        'permutations': permutations,
        'seed': args.seed,
        'alpha': ALPHA,
        'experts': E,
        'strengths': strengths,
        'routers': routers,
        'intervals': intervals,
        'seconds': round(time.perf_counter() - start),
        'cpu_seconds': round(time.process_time() - start_cpu),
    }
    print(markdown(record))
    out = args.out or (None if args.quick else RECORD)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(record, indent=1) + '\n', encoding='utf-8')
        out.with_suffix('.md').write_text(markdown(record), encoding='utf-8')


if __name__ == '__main__':
    main()
