"""Runs worlds, detectors and gates many times, and counts what the tests say of them."""

from __future__ import annotations

import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from scipy.stats import beta

from moe_det.analysis import SpecializationResult, measure_specialization
from moe_det.analysis.resampled_precision import SIZE_MEASURES
from moe_det.analysis.swap_results import costs, sizes_that_lose

from . import detectors, gates
from .clock import large_case
from .routers import EXPERTS, KINDS, planted_truth, row_counts, strength_for
from .scenes import coco_like, gamma_counts
from .unused import chi_square_p, free_rows_p
from .worlds import World, null_worlds, planted, two_unit_worlds

ALPHA = 0.01
VS = (0.1, 0.2, 0.4)
POWER_V, POWER_IMAGES = 0.2, (50, 100, 200, 300)
COVERED_IMAGES = 300
MANY_IMAGES = 20_000  # a truth, not a sample


@dataclass(frozen=True)
class Plan:
    """How much is simulated.

    Attributes:
        simulations: of worlds in which nothing is to be found.
        detectors: simulations of detectors in which the swap costs nothing.
        power: simulations of gates that sort by size.
        unused: simulations, of those of a world, in which tests that are not used are run as well.
        intervals: simulations of intervals.
        effects: simulations of detectors in which the swap costs something.
        gates: simulations of gates that are compared with random ones.
        permutations: of each test.
        bootstrap: samples of each interval.
        objects: of the case that is timed.
        seed: of everything.
    """

    simulations: int = 1000
    detectors: int = 400
    power: int = 400
    unused: int = 200
    intervals: int = 300
    effects: int = 60
    gates: int = 200
    permutations: int = 199
    bootstrap: int = 500
    objects: int = 40_000
    seed: int = 0


FULL = Plan()
QUICK = Plan(60, 60, 60, 60, 60, effects=20, gates=20, bootstrap=200, objects=4_000)


@dataclass(frozen=True)
class Case:
    """One entry of the record.

    Attributes:
        section: of the page.
        name: unique.
        run: measures it.
    """

    section: str
    name: str
    run: Callable[[Plan], dict]


@dataclass(frozen=True)
class Strength:
    """A planted gate: its strength, V and I(E;S | level)."""

    strength: float
    v: float
    bits: float


def planted_strengths(seed: int) -> dict[str, dict[float, Strength]]:
    """By kind of size and V, the strengths of the gates that sort by it."""
    rng = np.random.default_rng(seed)
    many = coco_like(rng, gamma_counts(rng, MANY_IMAGES))
    found: dict[str, dict[float, Strength]] = {}
    for kind, bins in KINDS.items():
        counts = row_counts(many, bins(many))
        strengths = {v: strength_for(counts, v) for v in VS}
        found[kind] = {v: Strength(s, *planted_truth(counts, s)) for v, s in strengths.items()}
    return found


def all_cases(strengths: dict[str, dict[float, Strength]]) -> list[Case]:
    """Every case, in the order of the page."""
    found = [Case('null', world.name, _of(routers, world)) for world in null_worlds()]
    found += [Case('units', world.name, _of(routers, world)) for world in two_unit_worlds()]
    for kind, by_v in strengths.items():
        for images in POWER_IMAGES:
            world = planted(kind, POWER_V, by_v[POWER_V].strength, images)
            found.append(Case('power', world.name, _of(power, world)))
    for kind, by_v in strengths.items():
        for v, entry in {0.0: Strength(0.0, 0.0, 0.0), **by_v}.items():
            world = planted(kind, v, entry.strength, COVERED_IMAGES)
            name = f'interval, {world.name}'
            found.append(Case('intervals', name, _of(coverage, world, kind, entry.bits)))
    found += [Case('swap', plan.name, _of(swaps, plan)) for plan in detectors.planted_detectors()]
    by_v = {v: entry.strength for v, entry in strengths['relative'].items() if v >= POWER_V}
    found += [Case('gates', plan.name, _of(random_gate_places, plan)) for plan in gates.planted_gates(by_v)]
    found.append(Case('time', 'a large data set', lambda plan: large_case(plan.objects)))
    return found


def _of(function: Callable, *given) -> Callable[[Plan], dict]:
    return lambda plan: function(plan, *given)


def rate(hits: Iterable[bool]) -> dict:
    """Share of hits with its 95 % binomial interval (Clopper and Pearson)."""
    hits = list(hits)
    n, k = len(hits), int(sum(hits))
    low = float(beta.ppf(0.025, k, n - k + 1)) if k else 0.0
    high = float(beta.ppf(0.975, k + 1, n - k)) if k < n else 1.0
    return {'share': k / n, 'low': low, 'high': high, 'hits': k, 'of': n}


def streams(plan: Plan, name: str, count: int) -> Iterable[tuple[int, np.random.Generator]]:
    """A stream of random numbers for each simulation, the same whatever else is run."""
    for simulation in range(count):
        yield simulation, np.random.default_rng([plan.seed, zlib.crc32(name.encode()), simulation])


# -- routers --------------------------------------------------------------------------------------------------------


def routers(plan: Plan, world: World) -> dict:
    """How often the test of each unit finds that experts sort by size."""
    hits: list[dict[str, list[bool]]] = []
    verdicts: list[Counter] = []
    reasons: Counter = Counter()
    both = []
    for simulation, rng in streams(plan, world.name, plan.simulations):
        drawn = world.draw(rng)
        results = [_measured(unit, plan, simulation) for unit in drawn]
        hits = hits or [{} for _ in results]
        verdicts = verdicts or [Counter() for _ in results]
        for unit, result, found, words in zip(drawn, results, hits, verdicts, strict=True):
            words[result.verdict] += 1
            if result.sorts is None:
                reasons[_without_numbers(result.undetermined_reason)] += 1
            for name, value in _answers(result).items():
                found.setdefault(name, []).append(value)
            if len(drawn) == 1 and simulation < plan.unused:
                for name, p_value in _unused(unit, result, rng).items():
                    found.setdefault(name, []).append(p_value <= ALPHA)
        both.append(all(result.sorts is True for result in results))
    return {
        'images': world.images,
        'truth': world.truth,
        'units': [
            {**{name: rate(values) for name, values in found.items()}, 'verdicts': dict(words)}
            for found, words in zip(hits, verdicts, strict=True)
        ],
        'sorts': rate(both),
        'reasons': dict(reasons),
    }


def power(plan: Plan, world: World) -> dict:
    """As :func:`routers`, for gates that sort by size."""
    return routers(replace(plan, simulations=plan.power), world)


def _measured(unit: dict, plan: Plan, seed: int, bootstrap: int = 0) -> SpecializationResult:
    return measure_specialization(
        **unit, num_experts=EXPERTS, permutations=plan.permutations, bootstrap=bootstrap, seed=seed
    )


def _answers(result: SpecializationResult) -> dict[str, bool]:
    def significant(p_value: float | None) -> bool:
        return p_value is not None and p_value <= ALPHA

    return {
        'COCO': significant(result.p_value),
        'relative': significant(result.relative_size.p_value),
        'sorts': result.sorts is True,
        'undetermined': result.sorts is None,
    }


def _unused(unit: dict, result: SpecializationResult, rng: np.random.Generator) -> dict[str, float]:
    return {
        'chi-square': chi_square_p(result.expert_by_size_by_level.transpose(2, 0, 1)),
        'rows exchanged freely': free_rows_p(unit, rng),
    }


def _without_numbers(reason: str) -> str:
    """The kind of a reason."""
    return reason.partition(':')[0].partition(';')[0].lstrip('0123456789 ')


def coverage(plan: Plan, world: World, kind: str, truth: float) -> dict:
    """How often the 95 % interval of the information holds the truth."""
    found = []
    for simulation, rng in streams(plan, world.name, plan.intervals):
        (unit,) = world.draw(rng)
        result = _measured(unit, plan, simulation, plan.bootstrap)
        relative = result.relative_size
        coco = result.mi_given_level_bits, result.mi_given_level_ci
        found.append(coco if kind == 'COCO' else (relative.mi_bits, relative.mi_ci))
    found = [(bits, *interval) for bits, interval in found if interval is not None]
    return {
        'images': world.images,
        'kind': kind,
        'truth_bits': truth,
        'covered': rate(low <= truth <= high for _, low, high in found),
        'mean_width_bits': float(np.mean([high - low for _, low, high in found])),
        'mean_error_bits': float(np.mean([bits - truth for bits, _, _ in found])),
    }


# -- detectors and random gates -------------------------------------------------------------------------------------


def swaps(plan: Plan, planted_detector: detectors.Planted) -> dict:
    """How often the swap test says that the gate's choice matters."""
    count = plan.effects if planted_detector.costs else plan.detectors
    with tempfile.TemporaryDirectory() as folder:
        found = [
            planted_detector.draw(rng, Path(folder) / 'objects.json', simulation)
            for simulation, rng in streams(plan, planted_detector.name, count)
        ]
    known = {name: [one[name] for one in found if one[name] is not None] for name in SIZE_MEASURES}
    losers = [sizes_that_lose(one) for one in found]
    return {
        'images': detectors.IMAGES,
        'draws': detectors.DRAWS,
        'resamples': detectors.RESAMPLES,
        'truth': 'costs' if planted_detector.costs else 'null',
        'costs': rate(map(costs, found)),
        'lost': {name: rate(name in sizes for sizes in losers) for name in SIZE_MEASURES},
        'mean_change': {name: float(np.mean([one['difference'] for one in of])) for name, of in known.items()},
        'interval_holds_zero': {
            name: rate(one['interval'][0] <= 0 <= one['interval'][1] for one in of) for name, of in known.items()
        },
    }


def random_gate_places(plan: Plan, gate: gates.PlantedGate) -> dict:
    """How often a gate is called beyond random gates, and its place among them."""
    found = [gate.draw(rng, simulation) for simulation, rng in streams(plan, gate.name, plan.gates)]
    return {
        'images': gates.IMAGES,
        'gates': gates.COUNT,
        'truth': 'sorts' if gate.beyond else 'null',
        'beyond': rate(result.beyond for result in found),
        'mean_place': float(np.mean([result.quantile for result in found])),
        'mean_bits': float(np.mean([result.bits for result in found])),
        'mean_median_bits': float(np.mean([np.median(result.values) for result in found])),
    }


def measure(case: Case, plan: Plan) -> dict:
    """An entry of the record: what was asked, what came out, how long it took."""
    start, start_cpu = time.perf_counter(), time.process_time()
    results = case.run(plan)
    return {
        'plan': asdict(plan),
        'results': results,
        'seconds': round(time.perf_counter() - start, 1),
        'cpu_seconds': round(time.process_time() - start_cpu, 1),
    }
