"""What the record of benchmarks/real_images.py says of one folder, in sentences."""

from __future__ import annotations

from collections.abc import Sequence

from .intervals import against
from .settings import BASELINE, SETTINGS, START

PAPER = {'AP_S': 2.3, 'AP_L': 1.8}  # spread over forced experts, arXiv 2204.10598, box experts on part of COCO
MOST_COST = 1.02  # multiply-adds over dense that count as equal
STILL_LEARNING = 0.5  # points that the control gains by going on
LEAST_SEEDS = 3
SPECIALISED = ('size-specialised', 'scale-specialised')


def conclusion(rows: dict[str, dict]) -> list[str]:
    """One sentence per question; what is open is said to be open."""
    found = [*_ended(rows), _pays(rows)]
    reported = [(row, run['experts']) for row in rows.values() for run in row['seeds'] if run.get('experts')]
    if reported:
        found += [_specialised(reported), *_forced(rows)]
    return found


def _ended(rows: dict[str, dict]) -> list[str]:
    more = against(rows[BASELINE], rows[START], 'AP') if {BASELINE, START} <= rows.keys() else None
    if more is None:
        return []
    ended = 'had not converged' if more.mean >= STILL_LEARNING else 'had converged'
    return [f'the detector without experts {ended}: further training changed it by {more.mean:+.1f} AP.']


def _pays(rows: dict[str, dict]) -> str:
    found = []
    for row in rows.values():
        control = rows.get(SETTINGS[row['setting']].baseline)
        if not row['control'] and control is not None:
            one = against(row, control, 'AP')
            if one is not None and one.seeds >= LEAST_SEEDS:
                found.append((one.mean, one, row))
    equal = [item for item in found if item[2]['multiply_adds_over_dense'] <= MOST_COST]
    if not equal:
        return f'whether a mixture at equal cost pays is open: none has {LEAST_SEEDS} seeds beside its control yet.'
    _, best, row = max(equal, key=lambda item: item[0])
    text = f'"{row["setting"]}" has {best.mean:+.1f} AP [{best.low:+.1f}, {best.high:+.1f}] against '
    text += f'"{SETTINGS[row["setting"]].baseline}"'
    among = f', the best of {len(equal)} settings' if len(equal) > 1 else ''
    if best.apart and best.mean > 0:
        return f'experts pay at equal cost: {text}{among}.'
    worse = sum(one.apart and one.mean < 0 for _, one, _ in equal)
    if not worse:
        return f'no mixture at equal cost is shown to be better or worse than its control: {text}{among}.'
    return f'no mixture at equal cost is shown to be better than its control: {text}{among}; {worse} shown to be worse.'


def _specialised(reported: Sequence[tuple[dict, dict]]) -> str:
    verdicts = [(row['setting'], layer['verdict']) for row, report in reported for layer in report['layers'].values()]
    text = []
    for verdict in SPECIALISED:
        names = [name for name, one in verdicts if one == verdict]
        where = f' ({", ".join(dict.fromkeys(names))})' if names else ''
        text.append(f'{len(names)} of {len(verdicts)} layers are {verdict}{where}')
    return '; '.join(text) + '.'


def spreads(layers: Sequence[dict], measure: str) -> list[float]:
    """Largest minus smallest average precision over forced experts, in points, seed by seed."""
    found = []
    for layer in layers:
        values = [one[measure] for one in layer['forced'] if one[measure] is not None]
        if len(values) > 1:
            found.append(100 * (max(values) - min(values)))
    return found


def _forced(rows: dict[str, dict]) -> list[str]:
    found = []
    for row in rows.values():
        layers = [layer for run in row['seeds'] for layer in (run.get('experts') or {}).get('layers', {}).values()]
        small, large = (spreads(layers, measure) for measure in ('AP_S', 'AP_L'))
        if small and large:
            found.append(
                f'forced experts of "{row["setting"]}" differ by {min(small):.1f} to {max(small):.1f} points of AP_S '
                f'and {min(large):.1f} to {max(large):.1f} of AP_L.'
            )
    return found
