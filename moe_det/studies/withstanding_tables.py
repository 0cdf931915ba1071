"""What a detector withstands, as a page of Markdown tables: AP in points, and in brackets the share of it lost."""

from __future__ import annotations

from collections.abc import Sequence

from ..attacks.masking import TOLERANCE
from ..attacks.plan import TRANSFERRED


def withstanding_page(found: dict) -> str:
    """The page of a record of :func:`.withstanding.attack`."""
    parts = [f'# What {found["rows"][0]} withstands\n\n{_about(found)}', _clean(found)]
    for loss in found['questions']['loss']:
        for eps in found['questions']['eps']:
            entries = [e for e in found['attacks'] if e['eps'] == eps and e['loss'] in (None, loss)]
            if entries:
                parts.append(_attacks(found, entries, f'eps {eps:g}/255, loss: {loss}'))
    parts += [_transfer(found, eps) for eps in found['questions']['eps']]
    parts += [_corruptions(found), _agreement(found), _masking(found)]
    return '\n\n'.join(part for part in parts if part) + '\n'


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table whose columns have equal widths, to be read as text too."""
    lines = [list(heads), *map(list, rows)]
    widths = [max(3, *(len(line[i]) for line in lines)) for i in range(len(heads))]
    padded = ['| ' + ' | '.join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)) + ' |' for line in lines]
    return '\n'.join([padded[0], '|' + '|'.join('-' * (w + 2) for w in widths) + '|', *padded[1:]])


def _about(found: dict) -> str:
    lines = [f'{found["images"]} images; AP in points, in brackets how much of the clean AP is lost.']
    if found['universal']:
        used, evaluated = found['universal']['images'], found['universal']['of_these_evaluated']
        lines.append(f'Universal perturbations were fitted to {used} images, {evaluated} of which are evaluated here.')
    if found['worst_expert'] is not None:
        lines.append(
            f'The worst expert, the one with the lowest AP when it is forced, is expert {found["worst_expert"]}.'
        )
    return '\n'.join(lines)


def _clean(found: dict) -> str:
    names = list(next(iter(found['clean'].values()))['ap'])
    rows = [[row, *(_points(found['clean'][row]['ap'][name]) for name in names)] for row in found['rows']]
    return '## Clean images\n\n' + table(['row', *names], rows)


def _attacks(found: dict, entries: Sequence[dict], title: str) -> str:
    names = list(dict.fromkeys(entry['attack'] for entry in entries))
    own = {(e['attack'], e['victim']): e for e in entries if e['source'] == e['victim']}
    rows = [[row, *(_lost(own.get((name, row))) for name in names)] for row in found['rows']]
    return f'## Attacks, {title}\n\n' + table(['row', *names], rows)


def _transfer(found: dict, eps: float) -> str:
    loss = found['questions']['loss'][0]
    entries = {
        (e['source'], e['victim']): e
        for e in found['attacks']
        if e['attack'] == TRANSFERRED and e['eps'] == eps and e['loss'] == loss
    }
    if len(found['rows']) < 2 or not entries:
        return ''
    rows = [[source, *(_lost(entries.get((source, victim))) for victim in found['rows'])] for source in found['rows']]
    title = f'## Transfer of {TRANSFERRED}, eps {eps:g}/255, loss: {loss}\n\n'
    return title + table(['images made for', *found['rows']], rows)


def _corruptions(found: dict) -> str:
    if not found['corruptions']:
        return ''
    severities = found['questions']['severities']
    rows = []
    for row in found['rows']:
        entries = [e for e in found['corruptions'] if e['row'] == row]
        clean = found['clean'][row]['ap']['AP']
        mean = _mean([e['ap']['AP'] for e in entries])
        share = '-' if not clean or mean is None else f'{100 * mean / clean:.1f} %'
        by_severity = [_mean([e['ap']['AP'] for e in entries if e['severity'] == s]) for s in severities]
        rows.append([row, _points(clean), _points(mean), share, *map(_points, by_severity)])
    heads = ['row', 'clean', 'mPC', 'rPC', *(f'severity {s}' for s in severities)]
    text = '## Common corruptions\n\nmPC is the mean AP over corruptions and severities, rPC its share of the clean AP.'
    text += '\n\n' + table(heads, rows)
    rows = []
    for name in found['questions']['corruptions']:
        means = [
            _mean([e['ap']['AP'] for e in found['corruptions'] if e['row'] == row and e['corruption'] == name])
            for row in found['rows']
        ]
        rows.append([name, *map(_points, means)])
    return text + '\n\n' + table(['mean over severities', *found['rows']], rows)


def _agreement(found: dict) -> str:
    """Agreement by layer: a line for each attack and eps, and one for each corruption's mean over severities."""
    own = [e for e in found['attacks'] if e['source'] == e['victim'] and e['agreement']]
    lines: dict[tuple[str, str], list[dict]] = {}
    for entry in own:
        loss = f', {entry["loss"]}' if entry['loss'] else ''
        key = entry['victim'], f'{entry["attack"]}, eps {entry["eps"]:g}{loss}'
        lines.setdefault(key, []).append(entry['agreement'])
    for entry in found['corruptions']:
        if entry['agreement']:
            lines.setdefault((entry['row'], entry['corruption']), []).append(entry['agreement'])
    if not lines:
        return ''
    layers = list(dict.fromkeys(layer for shares in lines.values() for share in shares for layer in share))
    rows = [
        [*key, *(_share(_mean([share.get(layer) for share in shares])) for layer in layers)]
        for key, shares in lines.items()
    ]
    heads = ['row', 'under', *layers]
    return '## Routing agreement\n\nShare of choices whose most probable expert stays.\n\n' + table(heads, rows)


def _masking(found: dict) -> str:
    if not found['attacks']:
        return ''
    lines = [f'- {row}: {sign}' for row, signs in found['masking'].items() for sign in signs]
    text = '\n'.join(lines) or 'None.'
    return f'## Signs of gradient masking (differences above {100 * TOLERANCE:g} AP)\n\n{text}'


def _lost(entry: dict | None) -> str:
    if entry is None:
        return '-'
    drop = '' if entry['drop'] is None else f' ({_signed(-100 * entry["drop"])} %)'
    return _points(entry['ap']['AP']) + drop


def _signed(value: float) -> str:
    return f'{value:+.0f}'.replace('-', '−')


def _points(value: float | None) -> str:
    return '-' if value is None else f'{100 * value:.1f}'


def _share(value: float | None) -> str:
    return '-' if value is None else f'{100 * value:.1f} %'


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
