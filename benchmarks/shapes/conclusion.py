"""What the record of benchmarks/specialization_on_shapes.py shows, in sentences."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean

from common.intervals import Difference, welch

from moe_det.analysis.random_gates import BEYOND

LAYERS = {'bbox_head.cls': 'class branch', 'bbox_head.reg': 'box branch'}
GUIDED = 'boxes-'  # settings that see box sizes of the ground truth while they train
PAPER = 'soft-level-all'  # the setting of arXiv 2204.10598
ENOUGH_SEEDS = 3  # as the verdict over seeds asks for
EQUAL_COST = 0.05  # of the dense head's multiply-adds
PAIRS = (('soft-level-all', 'hard-level-all'), ('soft-image-all', 'hard-image-all'))  # but for the constraint alike


@dataclass(frozen=True)
class Answers:
    """How many seeds answer each of the three questions with yes.

    Attributes:
        seeds: how many there are.
        sorts: by relative size beyond the level, in the detection unit and in the training unit.
        beyond: of these, more than random gates do.
        costs: lose AP at some size under the swap.
        size_specialised: have that verdict.
    """

    seeds: int
    sorts: int
    beyond: int
    costs: int
    size_specialised: int

    @property
    def closeness(self) -> tuple[float, float]:
        """To be compared: share of seeds with the verdict, then share of the questions answered with yes."""
        return self.size_specialised / self.seeds, (self.sorts + self.beyond + self.costs) / (3 * self.seeds)


def answers(found: Sequence[dict]) -> Answers:
    """Counts the seeds of one layer.

    Args:
        found: of each seed, what the record keeps of the layer.
    """
    sorts = [all(layer['sorts'].get(unit) is True for unit in ('detection', 'training')) for layer in found]
    beyond = [bool(layer['random_gates']) and layer['random_gates']['quantile'] > BEYOND for layer in found]
    return Answers(
        seeds=len(found),
        sorts=sum(sorts),
        beyond=sum(a and b for a, b in zip(sorts, beyond, strict=True)),
        costs=sum(bool(layer['swap'] and layer['swap']['costs']) for layer in found),
        size_specialised=sum(layer['verdict'] == 'size-specialised' for layer in found),
    )


def layers_of(setting: dict, layer: str) -> list[dict]:
    """What each seed recorded of a layer."""
    return [run['layers'][layer] for run in setting['runs'] if layer in run['layers']]


def relative_bits(layer: dict) -> float | None:
    """I(E; relative size | level) of one seed; None where it was not measured."""
    return (layer['relative_size'] or {}).get('mi_bits')


def swap_loss(layer: dict) -> float | None:
    """What the swap changes of AP, from -1 to 1, negative where it costs; None where it was not tested."""
    return ((layer['swap'] or {}).get('AP') or {}).get('difference')


def label(name: str) -> str:
    """A setting's name, marked where ground truth guides its experts."""
    return f'`{name}` (guided)' if name.startswith(GUIDED) else f'`{name}`'


def conclusion(finished: dict[str, dict]) -> list[str]:
    """Sentences that follow from the record alone: specialisation, swap, sorting, precision, soft against hard."""
    mixed = {name: setting for name, setting in finished.items() if setting['runs'][0]['layers']}
    if not mixed:
        return ['No setting with experts has been measured yet.']
    return [
        *specialised(mixed),
        *swapped(mixed),
        *sorting(mixed),
        *cost_of_paper(mixed),
        *against_dense(finished),
        *soft_against_hard(mixed),
    ]


def specialised(mixed: dict[str, dict]) -> list[str]:
    """Which settings are established as size-specialised, and which come closest."""
    enough = {name: setting for name, setting in mixed.items() if len(setting['runs']) >= ENOUGH_SEEDS}
    few = [label(name) for name in mixed if name not in enough]
    found = {
        (name, layer): answers(layers_of(setting, layer))
        for name, setting in enough.items()
        for layer in LAYERS
        if layers_of(setting, layer)
    }
    established = [(name, layer) for name, layer in found if _over_seeds(enough[name], layer) == 'established']
    sentences = []
    if established:
        listed = '; '.join(f'{label(name)}, {LAYERS[layer]}' for name, layer in established)
        sentences.append(f'Established as size-specialised over seeds: {listed}.')
    elif found:
        sentences.append('**No setting is established as size-specialised.**')
    rest = {key: value for key, value in found.items() if key not in established}
    best = max((value.closeness for value in rest.values()), default=(0, 0))
    if best > (0, 0):
        closest = [_described(*key, value) for key, value in rest.items() if value.closeness == best]
        sentences.append(f'Closest to it: {"; ".join(closest)}.')
    if few:
        sentences.append(f'Fewer than {ENOUGH_SEEDS} seeds, so nothing can be established: {", ".join(few)}.')
    return sentences


def _over_seeds(setting: dict, layer: str) -> str | None:
    return (((setting['seeds'] or {}).get('layers') or {}).get(layer) or {}).get('verdict')


def _described(name: str, layer: str, found: Answers) -> str:
    counts = (
        f'sorting beyond the level in both units: {found.sorts}',
        f'also more than random gates: {found.beyond}',
        f'losing AP under the swap: {found.costs}',
        f'size-specialised: {found.size_specialised}',
    )
    return f'{label(name)}, {LAYERS[layer]} ({found.seeds} seeds; {", ".join(counts)})'


def swapped(mixed: dict[str, dict]) -> list[str]:
    """What the swap costs the paper's setting and those with one decision per image."""
    listed = []
    for name, setting in mixed.items():
        if name != PAPER and '-image-' not in name:
            continue
        means = {branch: _mean(layers_of(setting, layer), swap_loss) for layer, branch in LAYERS.items()}
        parts = [f'{branch} {100 * mean:+.1f}' for branch, mean in means.items() if mean is not None]
        if parts:
            listed.append(f'{label(name)} {", ".join(parts)}')
    return [f'Change of AP under the swap in points, mean over seeds: {"; ".join(listed)}.'] if listed else []


def _mean(found: Sequence[dict], measure: Callable[[dict], float | None]) -> float | None:
    known = [value for value in map(measure, found) if value is not None]
    return fmean(known) if known else None


def sorting(mixed: dict[str, dict]) -> list[str]:
    """How much of relative size the gates tell, and in how many runs that is more than random gates tell."""
    sentences = []
    for layer, branch in LAYERS.items():
        found = [one for setting in mixed.values() for one in layers_of(setting, layer)]
        known = [value for value in map(relative_bits, found) if value is not None]
        if known:
            counted = answers(found)
            sentences.append(
                f'{branch.capitalize()}: relative size given the level {min(known):.3f} to {max(known):.3f} bits; of '
                f'{counted.seeds} runs {counted.sorts} sort by it in both units, {counted.beyond} of these more than '
                'random gates do.'
            )
    return sentences


def cost_of_paper(mixed: dict[str, dict]) -> list[str]:
    """That the paper's setting is cheaper than dense, where the record tells."""
    cost = mixed[PAPER]['runs'][0].get('multiply_adds_over_dense') if PAPER in mixed else None
    if not cost or abs(cost['head'] - 1) <= EQUAL_COST:
        return []
    head, model = cost['head'], cost['model']
    return [
        f"{label(PAPER)} runs {head:.3f} of dense's multiply-adds in the head ({model:.3f} in the whole model): its AP "
        'is no comparison at equal cost.'
    ]


def against_dense(finished: dict[str, dict]) -> list[str]:
    """Which settings lie below dense, above it or cannot be told from it; those at equal cost are named."""
    if 'dense' not in finished:
        return []
    groups: dict[str, list[str]] = {'below': [], 'above': [], 'not told from it': []}
    equal = []
    for name, setting in finished.items():
        apart = welch(_precisions(setting), _precisions(finished['dense']))
        if name == 'dense' or apart is None:
            continue
        word = 'not told from it' if not apart.apart else 'below' if apart.mean < 0 else 'above'
        groups[word].append(label(name))
        cost = setting['runs'][0].get('multiply_adds_over_dense')
        if cost and abs(cost['head'] - 1) <= EQUAL_COST:
            equal.append(f'{label(name)} {word}, {100 * apart.mean:+.1f} points')
    listed = '; '.join(f'{word}: {", ".join(names)}' for word, names in groups.items() if names)
    if not listed:
        return []
    fair = f'At the cost of dense (head within {100 * EQUAL_COST:.0f} %): {"; ".join(equal) or "none"}.'
    return [f"AP against dense by Welch's 95 % interval: {listed}. {fair}"]


def _precisions(setting: dict) -> list[float]:
    return [run['ap']['AP'] for run in setting['runs']]


def soft_against_hard(mixed: dict[str, dict]) -> list[str]:
    """Whether soft and hard constraints differ in precision, sorting or function, with all else alike."""
    sentences = []
    for soft, hard in PAIRS:
        if soft not in mixed or hard not in mixed:
            continue
        sides = [mixed[soft], mixed[hard]]
        compared = {'AP': [[100 * value for value in _precisions(side)] for side in sides]}
        for layer, branch in LAYERS.items():
            found = [layers_of(side, layer) for side in sides]
            compared[f'bits of relative size, {branch}'] = [list(map(relative_bits, side)) for side in found]
            compared[f'AP under the swap, {branch}'] = [_in_points(map(swap_loss, side)) for side in found]
        # all intervals of a pair together hold with 95 % (Bonferroni)
        level = 1 - 0.05 / len(compared)
        apart = {what: welch(*values, level=level) for what, values in compared.items()}
        known = {what: found for what, found in apart.items() if found is not None}
        if not known:
            sentences.append(f'{label(soft)} and {label(hard)}: too few seeds to compare them.')
            continue
        told = [_interval(what, found) for what, found in known.items() if found.apart]
        seen = f'they differ in {"; ".join(told)}'
        if not told:
            seen = f'they cannot be told apart ({_interval("AP", known["AP"])} points)'
        intervals = f'{len(known)} Welch intervals over seeds that together hold with 95 %'
        sentences.append(f'{label(soft)} minus {label(hard)}, {intervals}: {seen}.')
    return sentences


def _interval(what: str, found: Difference) -> str:
    return f'{what} {found.mean:+.3g} [{found.low:+.3g}, {found.high:+.3g}]'


def _in_points(values: Iterable[float | None]) -> list[float | None]:
    return [None if value is None else 100 * value for value in values]
