"""The page that benchmarks/specialization_on_shapes.py writes from its record."""

from __future__ import annotations

from statistics import mean, stdev

LAYERS = {'bbox_head.cls': 'class branch', 'bbox_head.reg': 'box branch'}
GUIDED = 'boxes-'  # settings that see box sizes of the ground truth while they train
BASELINE = 'soft-level-all'  # the setting of arXiv 2204.10598
TOLERANCE = 0.005  # a loss of AP below half a point is within what one seed differs from another
ENOUGH_SEEDS = 3  # one seed proves nothing: the most informative setting of seed 0 was an ordinary one with the others
PAPER_SPREAD = {'AP_S': 2.3, 'AP_L': 1.8}  # arXiv 2204.10598, between forced experts, points of AP on COCO


def points(values: list[float | None]) -> str:
    """Mean and, from two seeds on, standard deviation in points of AP."""
    known = [100 * value for value in values if value is not None]
    if not known:
        return '-'
    return f'{mean(known):.1f}' + (f' ± {stdev(known):.1f}' if len(known) > 1 else '')


def label(name: str) -> str:
    """A setting's name, marked where ground truth guides its experts."""
    return f'`{name}` (guided)' if name.startswith(GUIDED) else f'`{name}`'


def row(name: str, setting: dict) -> str:
    """One setting: average precision and, per layer, what is left of size given the level."""
    runs = setting['runs']
    cells = [label(name), str(len(runs)), *(points([r['ap'][k] for r in runs]) for k in ('AP', 'AP_S', 'AP_M', 'AP_L'))]
    for layer in LAYERS:
        found = [run['layers'][layer] for run in runs if layer in run['layers']]
        if not found:
            cells.append('')
            continue
        bits = ', '.join(f'{f["mi_given_level_bits"]:.3f}' for f in found)
        effect = ', '.join(f'{f["cramers_v_given_level"]:.2f}' for f in found)
        cells.append(f'{bits} bits; V {effect}')
    return '| ' + ' | '.join(cells) + ' |'


def verdict_row(name: str, setting: dict) -> str:
    """One setting: verdicts by seed, the common verdict and the spread between forced experts."""
    cells = [label(name)]
    for layer in LAYERS:
        found = [run['layers'][layer] for run in setting['runs']]
        words = ', '.join(f['verdict'] for f in found)
        common = ((setting['seeds'] or {}).get('layers') or {}).get(layer)
        spread = [points([f['counterfactual'][f'spread_AP_{size}'] for f in found]) for size in 'SL']
        cells += [words + (f'; {common["verdict"]}' if common else ''), f'{spread[0]} / {spread[1]}']
    return '| ' + ' | '.join(cells) + ' |'


def information(setting: dict) -> float:
    """I(E;S given level) in bits, summed over the layers, mean over seeds."""
    return mean(sum(layer['mi_given_level_bits'] for layer in run['layers'].values()) for run in setting['runs'])


def conclusion(finished: dict[str, dict]) -> str:
    """Names the settings with the most information about size that cost no AP, without guidance and with it.

    Only settings with enough seeds are compared; those with fewer that show more are named as undecided.
    """
    if BASELINE not in finished:
        return ''

    def precision(name: str) -> float:
        return mean(run['ap']['AP'] for run in finished[name]['runs'])

    bar = precision(BASELINE) - TOLERANCE
    able = {name: information(s) for name, s in finished.items() if s['runs'][0]['layers'] and precision(name) >= bar}
    compared = {name: bits for name, bits in able.items() if len(finished[name]['runs']) >= ENOUGH_SEEDS}
    sentences, undecided = [], []
    for guided, kind in ((False, 'no guidance'), (True, 'guidance')):
        of_kind = {name: bits for name, bits in compared.items() if name.startswith(GUIDED) == guided}
        if of_kind:
            best = max(of_kind, key=of_kind.get)
            sentences.append(f'with {kind} `{best}` ({of_kind[best]:.3f} bits, AP {100 * precision(best):.1f})')
        undecided += [
            f'`{name}` ({bits:.3f} bits)'
            for name, bits in able.items()
            if name not in compared and name.startswith(GUIDED) == guided and bits > max(of_kind.values(), default=0)
        ]
    baseline = f'`{BASELINE}` ({100 * precision(BASELINE):.1f})'
    named = (
        f'Most I(E;S given level), class and box branch together, among the settings with {ENOUGH_SEEDS} seeds that '
        f'lose less than {100 * TOLERANCE:g} points of AP against {baseline}: {"; ".join(sentences) or "none"}.'
    )
    return named + (f' More with fewer seeds, so undecided: {", ".join(undecided)}.' if undecided else '')


def page(record: dict, order: list[str]) -> str:
    """Markdown of all finished settings, in the order of the grid."""
    finished = {name: record['settings'][name] for name in order if name in record['settings']}
    missing = [name for name in order if name not in finished]
    versions = ', '.join(f'{name} {version}' for name, version in (record.get('versions') or {}).items())
    lines = [
        '# Do experts specialise in object size? Results on the synthetic shapes',
        '',
        'A narrow RetinaNet (`configs/shapes/`) with four experts in the class and in the box branch, two per',
        'decision, trained from scratch on 800 synthetic images and measured on 200 others with',
        '`tools/analysis_tools/size_specialization.py` (detection unit, 10,000 permutations). Names are',
        'constraint-unit-balance: `soft-level-all` is the setting of arXiv 2204.10598. AP in points, mean ± standard',
        'deviation over seeds. `similarity-*` have the sample similarity loss of arXiv 2302.14703 on pooled features,',
        '`boxes-*` on the sizes of the boxes in the image or patch: **ground truth of the training images guides these',
        'towards sizes**, all others are not guided. How to read the measures:',
        '[size_specialization.md](../size_specialization.md).',
        '',
        f'Measured on {record.get("date", "?")} on {record.get("machine", "?")}; {versions}.',
        f'Command: `{record.get("command", "?")}`. Epochs: '
        + ', '.join(sorted({str(s['epochs']) for s in finished.values()}))
        + '.',
        '',
        '| setting | seeds | AP | AP_S | AP_M | AP_L | class: I(E;S given level), by seed | box: likewise |',
        '|---|---|---|---|---|---|---|---|',
        *(row(name, setting) for name, setting in finished.items()),
        '',
        '## Verdicts, and what forcing an expert does',
        '',
        'Spread: the best minus the worst forced expert, AP_S / AP_L, in points. The paper reports '
        f'{PAPER_SPREAD["AP_S"]} / {PAPER_SPREAD["AP_L"]} on COCO.',
        '',
        '| setting | class: verdict by seed; over seeds | class: spread | box: verdict | box: spread |',
        '|---|---|---|---|---|',
        *(verdict_row(name, setting) for name, setting in finished.items() if setting['runs'][0]['layers']),
    ]
    if named := conclusion(finished):
        lines += ['', '## Which setting', '', named]
    if missing:
        lines += ['', f'Not run yet: {", ".join(f"`{name}`" for name in missing)}.']
    return '\n'.join(lines) + '\n'
