"""The record of planted worlds as a page."""

from __future__ import annotations

from common.page import MEASURES, section, table

ALPHA = 0.01
UNITS = ('detection', 'training')
TESTS = ('COCO', 'relative', 'sorts')


def page(record: dict) -> str:
    """Markdown; parts that the record lacks are left out.

    Args:
        record: ``made`` and, by section and name, the measured ``cases``.
    """
    made, cases = record['made'], record['cases']
    lines = [
        '# Planted worlds',
        '',
        'What the tests of size specialisation say where the truth is known. Shares in %, with the 95 % binomial '
        f'interval. `{made["command"]}`, {_duration(cases)} of one core ({made["cpu"]}, {made["cores"]} cores, Python '
        f'{made["python"]}, NumPy {made["numpy"]}, SciPy {made["scipy"]}, {made["date"]}).',
    ]
    if 'note' in made:  # which cases are older than the code they measure
        lines += ['', made['note']]
    for name, written in _SECTIONS.items():
        if cases.get(name):
            lines += written(cases[name])
    return '\n'.join(lines) + '\n'


def _duration(cases: dict) -> str:
    seconds = sum(entry['cpu_seconds'] for section in cases.values() for entry in section.values())
    return f'{seconds / 60:.0f} minutes' if seconds >= 120 else f'{seconds:.0f} s'


def share(rate: dict) -> str:
    """``0.8 (0.3 to 1.6)``, in %."""
    return f'{100 * rate["share"]:.1f} ({100 * rate["low"]:.1f} to {100 * rate["high"]:.1f})'


def _counts(entries: dict[str, dict], key: str = 'simulations') -> str:
    plans = {(entry['plan'][key], entry['plan']['permutations']) for entry in entries.values()}
    return ', or '.join(
        f'{count:,} simulations with {permutations} permutations' for count, permutations in sorted(plans)
    )


def _unused_runs(entries: dict[str, dict]) -> str:
    return ' or '.join(str(count) for count in sorted({entry['plan']['unused'] for entry in entries.values()}))


def _beyond(rates: dict[str, dict], level: float = ALPHA) -> str:
    """One sentence on rates of false positives that chance does not explain."""
    above = [name for name, rate in rates.items() if rate['low'] > level]
    hits, of = (sum(rate[key] for rate in rates.values()) for key in ('hits', 'of'))
    together = f'{100 * hits / of:.2f} % of all {of:,}'
    if not above:
        return f'The binomial interval of each reaches down to {100 * level:g} % or lower; together {together}.'
    return f'Beyond binomial error above {100 * level:g} %: {"; ".join(above)}. Together {together}.'


_UNUSED = ('chi-square', 'rows exchanged freely')


def _null(entries: dict[str, dict]) -> list[str]:
    held = {name: entry['results'] for name, entry in entries.items() if entry['results']['truth'] == 'null'}
    broken = {name: entry['results'] for name, entry in entries.items() if entry['results']['truth'] != 'null'}
    columns = ('world', 'images', 'p <= 0.01, COCO', 'p <= 0.01, relative', 'sorts', 'undetermined', *_UNUSED)

    def rows(found: dict[str, dict]) -> list[list]:
        lines = []
        for name, results in found.items():
            (unit,) = results['units']
            shares = [share(unit[key]) for key in TESTS]
            rest = [f'{100 * unit[key]["share"]:.0f}' for key in ('undetermined', *_UNUSED)]
            lines.append([name, results['images'], *shares, *rest])
        return lines

    rates = {f'{name} ({key})': results['units'][0][key] for name, results in held.items() for key in TESTS}
    text = [
        f'{_counts(entries)}. *COCO* and *relative*: the permutation test of I(E; size | level), for the bins of COCO '
        'and for thirds of area within the level. *sorts*: what the verdict takes from it, relative size with p <= '
        '0.01 and V >= 0.1. *undetermined*: the test refuses, most often as too few arrangements exist. The last two '
        f'columns are tests that are not used (in {_unused_runs(entries)} of the simulations), of the bins of COCO at '
        '0.01: a chi-square of objects within levels, and rows that are exchanged whatever their number of objects, '
        'each level on its own. A world *again* is the same world with other random numbers.',
    ]
    title = 'Nothing to find: given the level, routing has nothing to do with size'
    lines = section(title, text, table(columns, rows(held)), [_beyond(rates)])
    if broken:
        told = 'Images that depend on each other, where the test is not told so (`groups=`): it cannot hold its level.'
        lines += ['', told, '', *table(columns, rows(broken))]
    return lines


def _units(entries: dict[str, dict]) -> list[str]:
    columns = ['experts']
    columns += [name for unit in UNITS for name in (f'{unit} unit: p <= 0.01, COCO', 'relative', 'sorts')]
    rows = []
    for name, entry in entries.items():
        found = entry['results']
        rows.append([name, *(share(unit[key]) for unit in found['units'] for key in TESTS), share(found['sorts'])])
    rates = {name: entry['results']['sorts'] for name, entry in entries.items()}
    training = {
        f'{name} ({key}, training unit)': entry['results']['units'][1][key]
        for name, entry in entries.items()
        for key in ('COCO', 'relative')
    }
    text = [
        'A coin-toss gate. The detection unit sees what was found, at the level whose detection won, and both depend '
        'on the expert: alone it would be deceived. The verdict needs the training unit as well, which sees all '
        f'objects. {_images(entries)} images, {_counts(entries)}.',
    ]
    told = f'Both units: {_lower_first(_beyond(rates))} Training unit: {_lower_first(_beyond(training))}'
    found = table([*columns, 'both sort'], rows)
    return section('Nothing to find, but experts find different objects', text, found, [told])


def _lower_first(text: str) -> str:
    return text[0].lower() + text[1:]


def _images(entries: dict[str, dict]) -> str:
    return ' or '.join(str(images) for images in sorted({entry['results']['images'] for entry in entries.values()}))


def _power(entries: dict[str, dict]) -> list[str]:
    rows = []
    for name, entry in entries.items():
        (unit,) = entry['results']['units']
        rows.append([name, *(share(unit[key]) for key in TESTS)])
    text = [
        "V is Cramer's V of expert and size given the level, over very many images. Asked for, in the size that is "
        f'planted: 80 % at 100 images, 99 % at 200. {_counts(entries, "power")}.',
    ]
    heads = ('planted', 'p <= 0.01, COCO', 'p <= 0.01, relative', 'sorts')
    return section('Something to find: gates that sort by size', text, table(heads, rows))


def _intervals(entries: dict[str, dict]) -> list[str]:
    rows = []
    for name, entry in entries.items():
        found = entry['results']
        cells = [name.removeprefix('interval, '), f'{found["truth_bits"]:.4f}', share(found['covered'])]
        rows.append([*cells, f'{found["mean_width_bits"]:.4f}', f'{found["mean_error_bits"]:+.4f}'])
    bootstrap = ' or '.join(str(n) for n in sorted({entry['plan']['bootstrap'] for entry in entries.values()}))
    text = [f'{_counts(entries, "intervals")}, {bootstrap} bootstrap samples.']
    heads = ('planted', 'truth (bits)', 'covered', 'mean width (bits)', 'mean error (bits)')
    title = 'How often the 95 % interval of I(E; size | level) holds the truth'
    return section(title, text, table(heads, rows))


def _swap(entries: dict[str, dict]) -> list[str]:
    rows = []
    for name, entry in entries.items():
        found = entry['results']
        changes = [f'{100 * found["mean_change"][key]:+.1f}' for key in MEASURES]
        lost = [f'{100 * found["lost"][key]["share"]:.1f}' for key in MEASURES]
        rows.append([name, found['costs']['of'], share(found['costs']), *lost, ' / '.join(changes)])
    lost_of = tuple(f'{key} lost' for key in MEASURES)
    columns = ('detector', 'simulations', 'costs', *lost_of, 'mean change of AP / S / M / L, points')
    null = {name: entry['results'] for name, entry in entries.items() if entry['results']['truth'] == 'null'}
    one = next(iter(entries.values()))['results']
    text = [
        f'{one["images"]} images, {one["draws"]} draws, {one["resamples"]} resamples. Each expert answers every object '
        'with noise of its own; its skill for the object moves score, box and the chance of a detection (a skill of 1 '
        'is one standard deviation of the score before the sigmoid). *costs*: a loss of AP, AP_S, AP_M or AP_L with p '
        '<= 0.01 after the correction by Holm; then which of them. The first detectors have nothing to lose: experts '
        'do not differ, or what the gate chooses has nothing to do with how.',
    ]
    lines = section('The swap test on planted detectors', text, table(columns, rows))
    if null:
        covered = [share(found['interval_holds_zero']['AP']) for found in null.values()]
        rates = {name: found['costs'] for name, found in null.items()}
        lines += ['', f'Nothing to lose: {_lower_first(_beyond(rates))}']
        lines += ['', f'There the 95 % interval of AP holds zero in {", ".join(covered)} %.']
    return lines


def _gates(entries: dict[str, dict]) -> list[str]:
    rows = []
    for name, entry in entries.items():
        found = entry['results']
        bits = [f'{found[key]:.3f}' for key in ('mean_bits', 'mean_median_bits')]
        rows.append([name, found['beyond']['of'], share(found['beyond']), f'{found["mean_place"]:.2f}', *bits])
    one = next(iter(entries.values()))['results']
    columns = ('trained gate', 'simulations', 'beyond random gates', 'mean place', 'mean bits', "random gates' median")
    text = [
        f'{one["gates"]} random gates on features that tell the scale of the scene, {one["images"]} images. *beyond*: '
        'more bits than 95 % of the random gates, which a gate that is itself random has in 5 %.',
    ]
    return section('Random gates', text, table(columns, rows))


def _time(entries: dict[str, dict]) -> list[str]:
    lines = section('Time and memory')
    for entry in entries.values():
        found = entry['results']
        lines += [
            '',
            f'{found["objects"]:,} objects in {found["images"]:,} images, {found["permutations"]:,} permutations and '
            f'{found["bootstrap"]:,} bootstrap samples, both sizes: {found["seconds"]:g} s ({found["cpu_seconds"]:g} s '
            f'of one core){_memory(found)}.',
        ]
    return lines


def _memory(found: dict) -> str:
    if found['peak_bytes'] is None:
        return ''
    peak, before = (f'{found[key] / 1e9:.2f}' for key in ('peak_bytes', 'peak_bytes_before'))
    return f', {peak} GB at the peak, of which {before} are the interpreter, its packages and the data'


_SECTIONS = {
    'null': _null,
    'units': _units,
    'power': _power,
    'intervals': _intervals,
    'swap': _swap,
    'gates': _gates,
    'time': _time,
}
