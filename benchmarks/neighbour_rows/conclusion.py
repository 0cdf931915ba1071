"""What the record of benchmarks/neighbours.py says, in sentences."""

from __future__ import annotations

from statistics import fmean

from common.intervals import Difference, against, paired
from common.page import MEASURES, defined, difference, seeds_in_words, sure
from pay.conclusion import MOST_COST, SWAP, TARGET, layers_of, swap_losses
from pay.settings import BASELINE

from moe_det.attacks.plan import PGD, PGD_LONG

from .settings import CONSISTENT, KERNELS, MUTUAL, SHARDS
from .withstand import CLEAN, CORRUPTED, EPS, UNDER


def conclusion(rows: dict[str, dict]) -> list[str]:
    """One sentence per question; what is open is said to be open."""
    if not rows:
        return ['Nothing has been run yet.']
    baseline = rows.get(BASELINE)
    if baseline is None:
        return [f'"{BASELINE}" is not finished: nothing can be compared yet.']
    found = [_best(rows, baseline), _dearer(rows, baseline), _differ(rows), _mutual(rows)]
    found += [*_withstand(rows, baseline), *map(_closer, rows.values()), _consistent(rows)]
    return [sentence for sentence in found if sentence]


def under(row: dict, kind: str) -> dict:
    """A row whose AP is that under an attack, so that it can be compared like others."""
    runs = [run for run in row['seeds'] if run.get('withstands')]
    return {'seeds': [{'seed': run['seed'], 'AP': run['withstands'][kind]['AP']} for run in runs]}


def values(row: dict, kind: str, key: str) -> list[float]:
    """``'AP'``, ``'drop'`` or ``'agreement'`` under an attack of all seeds that have it."""
    found = [run['withstands'][kind].get(key) for run in row['seeds'] if run.get('withstands')]
    return [value for value in found if value is not None]


def looks(row: dict) -> list[dict]:
    """The closer looks at a row, of the seeds that have one."""
    return [run['closer'] for run in row['seeds'] if run.get('closer')]


def under_more_steps(row: dict) -> Difference | None:
    """AP that a row keeps under twenty steps, over its control, in points."""
    ends = [one[PGD_LONG] for one in looks(row)]
    return paired([100 * end['own'] for end in ends], [100 * end['control'] for end in ends])


def alone(row: dict) -> dict[str, list[float]]:
    """AP of each expert that all images were forced to run, of all layers and seeds, by measure."""
    forced = [one for _, layer in layers_of(row) for one in layer.get('forced') or ()]
    return {m: [one[m] for one in forced if defined(one.get(m))] for m in MEASURES}


def _gains(rows: dict[str, dict], baseline: dict, equal: bool) -> list[tuple[float, str, Difference]]:
    found = [
        (row, against(row, baseline, 'AP'))
        for row in rows.values()
        if not row['control'] and row['name'] not in (KERNELS, SHARDS)
        if (row['multiply_adds_over_dense'] <= MOST_COST) is equal
    ]
    return [(one.mean, row['name'], one) for row, one in found if one is not None]


def _best(rows: dict[str, dict], baseline: dict) -> str:
    gains = _gains(rows, baseline, equal=True)
    if not gains:
        return 'Whether a neighbour pays is open: none at equal cost is finished.'
    _, name, found = max(gains)
    pays = found.mean >= TARGET and found.above
    text = (
        'Of the neighbours at equal cost ' if len(gains) > 1 else 'Of the neighbours at equal cost the only one yet, '
    )
    text += f'"{name}" has {"the most AP, " if len(gains) > 1 else ""}{found.mean:+.1f} over the control '
    text += f'({sure(found)}); by our criterion (at least {TARGET:.0f} point and two standard errors, three seeds) '
    text += 'it pays' if pays else 'it is not shown to pay'
    known = against(rows[KERNELS], baseline, 'AP') if KERNELS in rows else None
    return f'{text}. "{KERNELS}" has {known.mean:+.1f} ({sure(known)}).' if known else f'{text}.'


def _dearer(rows: dict[str, dict], baseline: dict) -> str:
    found = [
        f'"{name}" ({rows[name]["multiply_adds_over_dense"]:.3f}, {one.mean:+.1f} AP, {sure(one)})'
        for _, name, one in _gains(rows, baseline, equal=False)
    ]
    return f'More than {MOST_COST} of the multiply-adds, so not at equal cost: {", ".join(found)}.' if found else ''


def _differ(rows: dict[str, dict]) -> str:
    losses = {name: [loss['AP'] for loss in swap_losses(row) if 'AP' in loss] for name, row in rows.items()}
    losses = {name: found for name, found in losses.items() if found}
    if not losses:
        return 'Whether experts differ is open: no swap test is finished.'
    texts = {name: f'"{name}" {fmean(of):.1f} ({seeds_in_words(len(of))})' for name, of in losses.items()}
    differ = [texts[name] for name, found in losses.items() if min(found) >= SWAP]
    rest = [texts[name] for name, found in losses.items() if min(found) < SWAP]
    text = f'Experts differ in what they can do, by a loss of {SWAP:.0f} AP in every seed when images swap routes: '
    text += ', '.join(differ) or 'none'
    return f'{text}. Not so: {", ".join(rest)}.' if rest else f'{text}.'


def _mutual(rows: dict[str, dict]) -> str:
    found = [(weight, rows[name]) for weight, name in MUTUAL.items() if name in rows]
    found = [(weight, row) for weight, row in found if alone(row)['AP']]
    if len(found) < 2:
        return ''
    parts = []
    for weight, row in found:
        losses = [loss['AP'] for loss in swap_losses(row) if 'AP' in loss]
        swap = f', swap {-fmean(losses):+.1f}' if losses else ''
        gated, single = fmean(run['AP'] for run in row['seeds']), fmean(alone(row)['AP'])
        parts.append(
            f'{weight:g}: {100 * gated:.1f}, alone {100 * single:.1f}{swap} ({seeds_in_words(len(row["seeds"]))})'
        )
    text = 'Mutual distillation by weight, AP of the mixture, of experts alone, and change under the swap: '
    return f'{text}{"; ".join(parts)}.'


def _withstand(rows: dict[str, dict], baseline: dict) -> list[str]:
    sentences = []
    for kind in UNDER:
        control = values(baseline, kind, 'AP')
        found = [
            (one.mean, row['name'], one)
            for row in rows.values()
            if row['name'] != BASELINE and (one := against(under(row, kind), under(baseline, kind), 'AP')) is not None
        ]
        if not control or not found:
            continue
        _, name, one = max(found)
        what = f'{kind} of {EPS}/255' if kind != CORRUPTED else f'common {CORRUPTED}'
        clean = 100 * fmean(values(baseline, CLEAN, 'AP'))
        text = (
            f'Under {what} the control keeps {100 * fmean(control):.1f} of {clean:.1f} AP; the row that keeps the most '
        )
        text += f'is "{name}" with {one.mean:+.1f} ({sure(one)}), '
        sentences.append(text + ('above it by two standard errors.' if one.above else 'not shown to be above it.'))
    return sentences


def _closer(row: dict) -> str:
    more = under_more_steps(row)
    if more is None:
        return ''
    found = looks(row)

    def kept(attack: str, what: str) -> str:
        return f'{100 * fmean(one[attack][what] for one in found):.1f}'

    above = 'above it by two standard errors' if more.above else 'not shown to be above it'
    text = f'A closer look at "{row["name"]}": after {PGD_LONG} it keeps {kept(PGD_LONG, "own")} AP, '
    text += (
        f'{more.mean:+.1f} over the control ({sure(more)}), {above}; images that {PGD} made for the control leave it '
    )
    text += f'{kept(PGD, "from_control")}, those made for itself {kept(PGD, "own")}; the control keeps '
    return f'{text}{kept(PGD, "control")} on its own and {kept(PGD, "on_control")} on those of the row.'


def _consistent(rows: dict[str, dict]) -> str:
    shares = [values(rows[name], CORRUPTED, 'agreement') if name in rows else [] for name in (CONSISTENT, SHARDS)]
    if not all(shares):
        return ''
    own, other = (f'{100 * fmean(found):.0f} % ({seeds_in_words(len(found))})' for found in shares)
    gain = against(under(rows[CONSISTENT], CORRUPTED), under(rows[SHARDS], CORRUPTED), 'AP')
    text = f'Consistent gates keep {own} of their decisions under corruptions, those of "{SHARDS}" {other}'
    return f'{text}; AP there differs by {difference(gain)}.'
