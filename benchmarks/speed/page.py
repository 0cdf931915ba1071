"""Tables and plots of docs/performance.md, from the records."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from common import README, ROOT
from common.page import MISSING, fill, titled
from common.record import write as write_file

from .cost_table import DEVICES, cost_table
from .detectors import AT_DENSE_COST, DENSE, MATCHED
from .layers import DENSE_EXPERT, DENSE_FFN, OURS, OVER_IDEAL, TOKENS
from .plot import draw, has_curves
from .record import Record, record_path

PAGE = ROOT / 'docs' / 'performance.md'
IMAGES = ROOT / 'docs' / 'images'
EMPTY = 'Not measured yet.'
MIB = 2**20
PROFILED = ('k=1', MATCHED, *AT_DENSE_COST)  # what should cost as much as a dense detector
WORTH_A_ROW = 1.0  # ms


def write() -> list[Path]:
    """Fills the tables of the page and of README and draws the plots from whatever records there are.

    Returns:
        The files written.
    """
    written = [PAGE, README]
    for device, machine in DEVICES.items():
        written += draw(Record(record_path(device)).sections, IMAGES / f'moe_speed_{device}', machine)
    for file, text in filled().items():
        write_file(file, text)
    return written


def filled() -> dict[Path, str]:
    """The texts of the page and of README with tables from the records."""
    text = PAGE.read_text(encoding='utf-8')
    records = {device: Record(record_path(device)).sections for device in DEVICES}
    for device, sections in records.items():
        text = fill(text, f'moe_speed {device}', block(sections, device))
    return {PAGE: text, README: fill(README.read_text(encoding='utf-8'), 'moe_speed costs', cost_table(records))}


def block(sections: dict, device: str) -> str:
    """What stands between the marks."""
    if not sections:
        return EMPTY
    parts = [tables(sections)]
    if has_curves(sections):
        name = f'images/moe_speed_{device}'
        parts.append(f'![Time of one layer over the number of experts, by pattern.]({name}.png)\n\n[SVG]({name}.svg)')
    return '\n\n'.join(parts)


def tables(sections: dict) -> str:
    """All tables of a record as Markdown."""
    return '\n\n'.join(part for part in _parts(sections) if part)


def _parts(sections: dict) -> Iterator[str]:
    if not sections:
        yield EMPTY
        return
    yield '\n'.join(f'- {line}' for line in _origins(sections))
    whole, layer, memory = (sections.get(name, {}) for name in ('whole', 'layer', 'memory'))
    yield from (_whole(whole), _at_dense_cost(whole), _separate(sections.get('separate', {})))
    yield from (_profile(sections.get('profile', {})), _layer(layer), _flat(layer))
    yield from (_patterns(sections.get('patterns', {})), _tokens(sections.get('tokens', {})))
    yield from (_layer_memory(memory), _detector_memory(memory), _optimizer(sections.get('optimizer', {})))


def _origins(sections: dict) -> list[str]:
    """One line for each different origin of the measurements."""
    lines: dict[str, list[str]] = {}
    for section, entries in sections.items():
        for entry in entries.values():
            made = entry['made']
            gpu = f'{made["gpu"]}, CUDA {made["cuda"]}, cuDNN {made["cudnn"]}; ' if made.get('gpu') else ''
            line = (
                f'`{made["command"]}`, {made["date"]}: {gpu}{made["cpu"]}, {made["cores"]} cores, {made["threads"]} '
                f'threads, Python {made["python"]}, torch {made["torch"]}, mmcv {made["mmcv"]}, mmdet {made["mmdet"]}'
            )
            if made['busy_machine']:
                line += f'; **measured on a busy machine**: {made["busy_machine"]}'
            lines.setdefault(line, [])
            if section not in lines[line]:
                lines[line].append(section)
    return [f'{", ".join(found)}: {line}' for line, found in lines.items()]


def _ratio(found: dict | None) -> str:
    if found is None:
        return '–'
    return f'{found["median"]:.3f} ({found["ci95"][0]:.3f} to {found["ci95"][1]:.3f})'


def _done(entries: dict) -> Iterator[tuple[dict, dict]]:
    for entry in entries.values():
        if 'error' not in entry['results']:
            yield entry['settings'], entry['results']


def _whole(entries: dict) -> str:
    names = ['k=1 / dense', 'k=2 / dense', 'FLOP-ideal of k=2 / dense', 'k=2 / FLOP-ideal', 'k=2 matched / dense']
    rows = []
    for entry in entries.values():
        settings, results = entry['settings'], entry['results']
        if 'error' in results:
            rows.append([_case(settings), settings['phase'], results['error'], *['–'] * (len(names) + 1)])
            continue
        dense = results['times'][DENSE]['total']
        steps = [(settings['phase'], f'{dense["median_ms"]:.1f}', results['ratios'])]
        if results.get('ratios_without_optimizer'):
            steps.append(('training, without optimizer', '', results['ratios_without_optimizer']))
        for step, ms, ratios in steps:
            rows.append([_case(settings), step, ms, *(_ratio(ratios.get(name)) for name in names), dense['n']])
    title = '**Whole RetinaNet R50-FPN**, 80 classes, E=4; batch, height x width of the images.'
    return titled(title, ['images', 'step', 'dense ms', *names, 'n'], rows)


def _at_dense_cost(entries: dict) -> str:
    names = [f'{name} / dense' for name in AT_DENSE_COST]
    rows = []
    for settings, results in _done(entries):
        for key, label in (('ratios', settings['phase']), ('ratios_without_optimizer', 'training, without optimizer')):
            found = results.get(key, {})
            if names[0] in found:
                cells = [_ratio(found.get(name)) for name in names]
                rows.append([_case(settings), label, *cells, found[names[0]]['n']])
    title = (
        '**At the cost of the dense head**: two shards of four and of eight copies '
        '(`retinanet_moe_shards_from_dense.py`), mixed kernels of eight copies (`retinanet_moe_from_dense.py`); in the '
        'same rounds.'
    )
    return titled(title, ['images', 'step', *names, 'n'], rows)


def _case(settings: dict) -> str:
    return 'B={}, {}x{}, {}'.format(settings['batch'], *settings['size'], settings['precision'])


def _separate(entries: dict) -> str:
    rows = []
    for settings, results in _done(entries):
        ((name, found),) = results['ratios'].items()
        dense = results['times']['batch']
        rows.append([_case(settings), settings['phase'], f'{dense["median_ms"]:.1f}', _ratio(found), dense['n']])
    title = (
        '**One call per image**: the two branches of plain RetinaNet for each image alone, with weights of its own, '
        'over the same branches for the batch. It is what images with different experts cost at least.'
    )
    return titled(title, ['images', 'step', 'batch ms', 'image by image / batch', 'n'], rows)


def _profile(entries: dict) -> str:
    done, rows = list(_done(entries)), []
    profiled = [name for name in PROFILED if any(name in results['by_kind'] for _, results in done)]
    for settings, results in done:
        first, found = [_case(settings)], results['by_kind']
        for phase, kinds in found[DENSE].items():
            for kind, dense_ms in kinds.items():
                more = {name: found[name][phase][kind] - dense_ms for name in profiled if name in found}
                if max(dense_ms, *map(abs, more.values())) >= WORTH_A_ROW:
                    label = phase if settings['phase'] == phase else f'training, {phase}'
                    cells = [f'{more[name]:+.1f}' if name in more else MISSING for name in profiled]
                    rows.append([*first, label, kind, f'{dense_ms:.1f}', *cells, settings['rounds']])
    title = '**Where the time goes**: milliseconds of plain RetinaNet, and how many more (or less) with experts.'
    heads = ['images', 'step', 'spent in', 'dense', *profiled, 'n']
    return titled(title, heads, rows)


def _shape(entries: dict) -> str:
    layers = [entry['settings']['layer'] for entry in entries.values() if 'layer' in entry['settings']]
    text = '{rows} rows of {channels} x {height} x {width}, {convs} convolutions'
    return '; '.join(dict.fromkeys(text.format(**layer) for layer in layers))


def _layer(entries: dict) -> str:
    rows, experts = [], []
    for settings, results in _done(entries):
        if 'active' in settings:
            continue
        experts = experts or list(settings['experts'])
        first = [settings['phase'], f'k={settings["top_k"]}', settings['precision']]
        dense = results['times'][DENSE_EXPERT]
        cells = [_ratio(results['ratios'].get(f'E={e} / k dense experts')) for e in experts]
        rows.append([*first, f'{dense["median_ms"]:.2f}', *cells, dense['n']])
    title = f'**The layer alone** over k times one dense expert ({_shape(entries)}).'
    heads = ['step', 'experts per row', 'precision', 'dense ms', *[f'E={e}' for e in experts], 'n']
    return titled(title, heads, rows)


def _flat(entries: dict) -> str:
    rows = []
    for settings, results in _done(entries):
        if 'active' not in settings:
            continue
        ((name, found),) = results['ratios'].items()
        cells = [settings['phase'], f'k={settings["top_k"]}', settings['precision'], name, _ratio(found)]
        rows.append([*cells, found['n']])
    title = '**More experts, the same four in use.**'
    return titled(title, ['step', 'experts per row', 'precision', 'ratio', 'time', 'n'], rows)


def _patterns(entries: dict) -> str:
    others = ['boolean masks', 'index_add loop', 'grouped convolution']
    rows = []
    for settings, results in _done(entries):
        ratios = results['ratios']
        cells = [settings['phase'], settings['experts'], settings['top_k'], settings['precision']]
        cells.append(_ratio(ratios.get(f'{OURS} / {DENSE_EXPERT}')))
        cells += [_ratio(ratios.get(f'{name} / {OURS}')) for name in others]
        rows.append([*cells, next(iter(ratios.values()))['n']])
    title = f'**Other ways to run experts**, on the same layer and routing ({_shape(entries)}).'
    heads = ['step', 'E', 'k', 'precision', 'ours / one dense expert', *[f'{name} / ours' for name in others], 'n']
    return titled(title, heads, rows)


def _tokens(entries: dict) -> str:
    rows, shapes = [], []
    for settings, results in _done(entries):
        s = settings['tokens']
        shapes.append('{tokens:,} tokens of {channels} channels, {hidden} hidden, E={experts}, k={top_k}'.format(**s))
        times = [f'{results["times"][name]["median_ms"]:.1f}' for name in (DENSE_FFN, TOKENS)]
        found = results['ratios'][OVER_IDEAL]
        rows.append([settings['phase'], settings['precision'], *times, _ratio(found), found['n']])
    heads = ['step', 'precision', 'dense FFN ms', 'MoEFFN ms', 'over k dense FFNs', 'n']
    return titled(f'**Tokens** ({"; ".join(dict.fromkeys(shapes))}).', heads, rows)


def _layer_memory(entries: dict) -> str:
    rows = []
    for settings, results in _done(entries):
        for name, found in results.get('patterns', {}).items():
            dense = results['patterns'][DENSE_EXPERT]
            kept = 'activations' if 'activations' in found else 'saved_bytes'
            cells = ['–', '–'] if name == DENSE_EXPERT else [settings['experts'], settings['top_k']]
            row = [name, *cells, settings['precision'], f'{found[kept] / MIB:.2f}']
            row += [f'{found[kept] / dense[kept]:.3f}', found['host_copies']]
            row += [f'{found["convolutions_forward"]} + {found["convolutions_backward"]}', f'{found["macs"] / 1e9:.2f}']
            if row not in rows:  # the dense expert stands in every measurement
                rows.append(row)
    heads = ['pattern', 'E', 'k', 'precision', 'kept MiB', '/ dense', 'host copies', 'convolutions', 'GMAC']
    title = f'**Memory and counts of the layer**, training step, four experts in use ({_shape(entries)}).'
    return titled(title, heads, rows)


def _detector_memory(entries: dict) -> str:
    rows = []
    for name, entry in entries.items():
        results = entry['results']
        if not name.startswith('detector '):
            continue
        label = name.removeprefix('detector ').removesuffix(f' {entry["settings"]["precision"]}')
        first = [label, entry['settings']['precision'], entry['settings']['batch']]
        if 'error' in results:
            rows.append([*first, results['error'], *['–'] * 7])
            continue
        head, kept, cost = results['head'], results['kept'], results['cost']
        peak = f'{kept["peak_beyond_state"] / MIB:.0f}' if 'peak_beyond_state' in kept else '–'
        row = [*first, f'{_kept(entry) / MIB:.1f}', _kept_over_dense(entry, entries), peak]
        row += [head['host_copies'], head['convolutions_forward']]
        row += [f'{cost["params"] / 1e6:.2f}', f'{cost["active_params"] / 1e6:.2f}']
        macs = [cost['active_macs_per_image'], cost['macs_per_image']]
        rows.append([*row, *['–' if value is None else f'{value / 1e9:.2f}' for value in macs]])
    heads = ['detector', 'precision', 'B', 'kept MiB', '/ dense', 'peak MiB', 'host copies of the head']
    heads += ['convolutions of the head', 'params M', 'active M', 'GMAC active', 'GMAC all experts']
    return titled('**Memory and counts of the detector**, training step.', heads, rows)


def _kept(entry: dict) -> int:
    kept = entry['results']['kept']
    return kept.get('activations', kept['saved_bytes'])


def _kept_over_dense(entry: dict, entries: dict) -> str:
    dense = entries.get(f'detector {DENSE} {entry["settings"]["precision"]}')
    return f'{_kept(entry) / _kept(dense):.3f}' if dense and 'kept' in dense['results'] else '–'


def _optimizer(entries: dict) -> str:
    rows = []
    for name, entry in entries.items():
        if 'error' in (results := entry['results']):
            rows.append([name, results['error'], *['–'] * 4])
            continue
        times, ratios = results['times']['one by one'], results['ratios']
        cells = [_ratio(ratios.get(f'{kind} / one by one')) for kind in ('foreach', 'fused')]
        rows.append([name, f'{results["params"] / 1e6:.2f}', f'{times["median_ms"]:.1f}', *cells, times['n']])
    heads = ['detector', 'params trained M', 'one by one ms', 'foreach / one by one', 'fused / one by one', 'n']
    title = '**The optimizer alone**: SGD with momentum and weight decay over all parameters.'
    return titled(title, heads, rows)
