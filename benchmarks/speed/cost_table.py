"""README's table of what experts cost, from the records."""

from __future__ import annotations

from common.page import table

from .detectors import DENSE, KERNELS, MANY, MATCHED, SHARDS

ROWS = {
    'k=1': '`retinanet_moe_top1.py`: E=4, k=1',
    'k=2': '`retinanet_moe_soft.py`: E=4, k=2',
    MATCHED: '`retinanet_moe_soft_matched.py`: E=4, k=2, narrow',
    SHARDS[0]: '`retinanet_moe_shards_from_dense.py`: 2 shards of 4 copies',
    KERNELS: '`retinanet_moe_from_dense.py`: kernels of 8 copies mixed',
    MANY: '`retinanet_moe_soft.py` with 32 experts, k=2',
}
DEVICES = {'cpu': 'CPU', 'cuda': 'GPU'}
PHASES = {'training': 'training step', 'inference': 'inference'}


def cost_table(records: dict[str, dict]) -> str:
    """Markdown: multiply-adds, parameters and times over those of plain RetinaNet.

    Args:
        records: device -> sections of its record; those without measurements of the whole detector have no columns.
    """
    costs = next((found for found in map(_costs, records.values()) if found), None)
    if costs is None:
        return 'Not measured yet.'
    whole = {device: sections['whole'] for device, sections in records.items() if sections.get('whole')}
    heads = ['', 'multiply-adds', 'parameters', 'of these run']
    heads += [f'{text}, {DEVICES[device]}' for device in whole for text in PHASES.values()]
    dense = costs[DENSE]
    ones = ['1'] * len(PHASES) * len(whole)
    rows = [["mmdet's RetinaNet R50-FPN", '1', f'{dense["params"] / 1e6:.1f} M', 'all', *ones]]
    for name, label in ROWS.items():
        cost = costs.get(name)
        if cost is None:
            continue
        cells = [label, f'{cost["active_macs_per_image"] / dense["active_macs_per_image"]:.2f}']
        cells += [f'{cost["params"] / 1e6:.1f} M', f'{cost["active_params"] / 1e6:.1f} M']
        rows.append([*cells, *(_time(found, name, phase) for found in whole.values() for phase in PHASES)])
    return '\n'.join([*table(heads, rows), *_footnotes(whole)])


def _costs(sections: dict) -> dict[str, dict]:
    """Name of a detector -> its counts."""
    found = {}
    for name, entry in sections.get('memory', {}).items():
        if name.startswith('detector ') and 'cost' in entry['results']:
            label = name.removeprefix('detector ').removesuffix(f' {entry["settings"]["precision"]}')
            found[label] = entry['results']['cost']
    return found


def _first(whole: dict, phase: str) -> dict | None:
    """The measurement of the smallest batch that succeeded, of its largest images, in the first precision."""
    entries = [e for e in whole.values() if e['settings']['phase'] == phase and 'error' not in e['results']]

    def order(entry: dict) -> tuple[int, int]:
        height, width = entry['settings']['size']
        return entry['settings']['batch'], -height * width

    return min(entries, key=order, default=None)


def _time(whole: dict, name: str, phase: str) -> str:
    entry = _first(whole, phase)
    ratio = entry and entry['results']['ratios'].get(f'{name} / dense')
    return f'{ratio["median"]:.2f}' if ratio else '–'


def _footnotes(whole: dict[str, dict]) -> list[str]:
    """What the times were measured on."""
    lines = []
    for device, found in whole.items():
        entry = next(filter(None, (_first(found, phase) for phase in PHASES)), None)
        if entry is None:
            continue
        made, settings = entry['made'], entry['settings']
        machine = made.get('gpu') or f'{made["cores"]} cores of {made["cpu"]}'
        height, width = settings['size']
        busy = ', **on a busy machine**' if made['busy_machine'] else ''
        lines.append(
            f'{DEVICES[device]}: {machine}, batch of {settings["batch"]}, images of {height}x{width}, '
            f'{settings["precision"]}, torch {made["torch"]}, {made["date"]}{busy}; median of '
            f'{entry["results"]["times"][DENSE]["total"]["n"]} interleaved rounds, `python benchmarks/moe_speed.py'
            + (' --device cuda`.' if device == 'cuda' else '`.')
        )
    return ['', *lines] if lines else []
