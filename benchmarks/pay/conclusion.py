"""What the record of benchmarks/experts_that_pay.py says, in sentences."""

from __future__ import annotations

from statistics import fmean

from common.intervals import Difference, against
from common.page import MEASURES, difference, seeds_in_words, sure

from .settings import AGAIN, BASELINE, ROWS, TWICE

TARGET = 1.0  # points above the control
MOST_COST = 1.02  # multiply-adds over dense
MARGIN = 0.3  # points below the control that experts with functions of their own may be
SWAP, SWAP_OF_A_SIZE = 1.0, 2.0  # points lost under the swap
STILL_LEARNING = 0.5  # points that the control gains by going on


def conclusion(rows: dict[str, dict]) -> list[str]:
    """One sentence per question; what is open is said to be open."""
    baseline = rows.get(BASELINE)
    if baseline is None:
        return [f'"{BASELINE}" is not finished: nothing can be compared yet.']
    found = [_capacity(rows, baseline), _pays(rows, baseline), _differs(rows, baseline)]
    return [*found, *_not_enough(rows, baseline), *_ended(rows, baseline)]


def _capacity(rows: dict[str, dict], baseline: dict) -> str:
    found = against(rows[TWICE], baseline, 'AP') if TWICE in rows else None
    if found is None:
        return f'Whether capacity binds is open: "{TWICE}" is not finished.'
    binds = 'binds' if found.mean >= 1.5 and found.above else 'is not shown to bind'
    best = max((one.mean for _, one in _mixtures(rows, baseline)), default=found.mean)
    wider = ' If you can afford that, width gains more than experts do.' if found.mean > best else ''
    return (
        f'Capacity {binds}: a head of twice the width has {found.mean:+.1f} AP ({seeds_in_words(found.seeds)}) at '
        f'{_cost(rows[TWICE], 2)}.{wider}'
    )


def _cost(row: dict, digits: int = 3) -> str:
    text = f'{row["multiply_adds_over_dense"]:.{digits}f} of the multiply-adds'
    times = row.get('time_over_dense')
    return f'{text} and {times["training"]["median"]:.2f} of the training time' if times else text


def _mixtures(rows: dict[str, dict], baseline: dict) -> list[tuple[dict, Difference]]:
    found = [
        (row, against(row, baseline, 'AP'))
        for row in rows.values()
        if not row['control'] and row['multiply_adds_over_dense'] <= MOST_COST
        if ROWS[row['name']].against == BASELINE
    ]
    return [(row, one) for row, one in found if one is not None and one.seeds >= 3]


def _pays(rows: dict[str, dict], baseline: dict) -> str:
    mixtures = _mixtures(rows, baseline)
    if not mixtures:
        return 'Whether a mixture pays is open: no row at equal cost has three seeds yet.'
    row, best = max(mixtures, key=lambda one: one[1].mean)
    text = f'"{row["name"]}" has {difference(best)} AP ({sure(best)}) at {_cost(row)}'
    if len(mixtures) > 1:
        text += f', the best of {len(mixtures)} mixtures (interval uncorrected for the choice)'
    if best.mean >= TARGET and best.above:
        return f'Experts pay here, by our criterion (at least {TARGET:.0f} point and two standard errors): {text}.'
    return f'No mixture at equal cost is better by {TARGET:.0f} point and two standard errors; the nearest: {text}.'


def swaps_of(row: dict) -> list[dict | None]:
    """What the swap of all layers at once changed in each seed; None where it was not tested."""
    return [(run.get('swap') or {}).get('whole') for run in row['seeds']]


def layers_of(row: dict) -> list[tuple[str, dict]]:
    """Names of layers and what the report says of them, of all seeds."""
    return [item for run in row['seeds'] for item in ((run.get('swap') or {}).get('layers') or {}).items()]


def swap_losses(row: dict) -> list[dict[str, float]]:
    """What each seed loses under the swap, in points, by measure."""
    changes = [{m: whole[m]['difference'] for m in MEASURES if whole.get(m)} for whole in swaps_of(row) if whole]
    return [{m: -100 * value for m, value in of_run.items() if value is not None} for of_run in changes]


def _differs(rows: dict[str, dict], baseline: dict) -> str:
    good = []
    for row, one in _mixtures(rows, baseline):
        losses = swap_losses(row)
        large = [
            loss['AP'] >= SWAP or max(v for m, v in loss.items() if m != 'AP') >= SWAP_OF_A_SIZE for loss in losses
        ]
        if one.mean >= -MARGIN and len(losses) >= 3 and all(large):
            good.append((fmean(loss['AP'] for loss in losses), row['name'], one.mean))
    if not good:
        return (
            f'No row within {MARGIN} AP of the control loses {SWAP:.0f} AP (or {SWAP_OF_A_SIZE:.0f} at one size) under '
            'the swap in three seeds.'
        )
    loss, name, gain = max(good)
    return f'AP and experts that differ: "{name}" has {gain:+.1f} AP and loses {loss:.1f} when images swap routes.'


def _not_enough(rows: dict[str, dict], baseline: dict) -> list[str]:
    """The mixture whose experts differ most among those that are about as good as the control."""
    apart = []
    for row, one in _mixtures(rows, baseline):
        losses = [loss['AP'] for loss in swap_losses(row)]
        if one.mean >= -MARGIN and not one.above and losses and min(losses) >= SWAP:
            apart.append((fmean(losses), len(losses), row['name'], one.mean))
    if not apart:
        return []
    loss, seeds, name, gain = max(apart)
    return [
        f'Experts that differ are not enough: "{name}" loses {loss:.1f} when images swap routes '
        f'({seeds_in_words(seeds)}) and has {gain:+.1f} AP.'
    ]


def _ended(rows: dict[str, dict], baseline: dict) -> list[str]:
    """Whether the control still learns, when a mixture may only learn faster, and what a longer training shows."""
    more = against(baseline, rows['dense'], 'AP') if 'dense' in rows else None
    if more is None or more.mean < STILL_LEARNING:
        return []
    text = f'Training on at the initial learning rate gave the detector without experts {more.mean:+.1f} AP'
    again = against(rows[AGAIN], baseline, 'AP') if AGAIN in rows else None
    if again is None:
        return [f'{text}; a better mixture may merely learn faster.']
    text += f', and doing so once more {again.mean:+.1f} ({seeds_in_words(again.seeds)}).'
    for row in rows.values():
        if not row['control'] and ROWS[row['name']].against == AGAIN:
            found = against(row, rows[AGAIN], 'AP')
            text += f' "{row["name"]}" then has {difference(found)} AP more ({sure(found)}).'
    return [text]
