"""The page that benchmarks/reproduce_soft_vs_hard.py writes from its record."""

from __future__ import annotations

from math import hypot, log2, sqrt
from statistics import mean, median

from common.intervals import welch
from common.page import dates, origins, spread, table

NAMES = {
    'importance': 'soft: importance loss, 0.5',
    'kl': 'soft: KL loss, 0.5',
    'relative': 'hard: relative importance, 0.5',
    'mean': 'hard: mean importance, 0.3',
    'dense': 'dense ResNet-18',
}
FAMILIES = {'soft': ('importance', 'kl'), 'hard': ('relative', 'mean')}
DATA_SETS = {'cifar10': 'CIFAR-10', 'cifar100': 'CIFAR-100'}
CHANCE = {'cifar10': 10.0, 'cifar100': 1.0}  # accuracy of a guess
# arXiv 2204.10598, CIFAR-100: accuracy in percent with k = 1 ... 10 of ten experts at test time, trained with k = 2
PUBLISHED = {
    'importance': (68.52, 71.61, 72.58, 72.70, 73.00, 73.04, 73.09, 73.12, 73.14, 73.08),
    'kl': (69.38, 71.99, 72.91, 73.10, 73.17, 73.22, 73.20, 73.22, 73.21, 73.18),
    'relative': (72.56, 72.84, 73.08, 73.11, 73.14, 73.15, 73.14, 73.15, 73.16, 73.16),
    'mean': (71.52, 73.09, 73.34, 73.30, 73.21, 73.23, 73.17, 73.14, 73.16, 73.16),
}
PUBLISHED_DENSE = 72.59
GATES = {'I_EY': 'I(E;Y)', 'H_s': 'H_s', 'H_u': 'H_u'}  # bits, of a run with the number of experts trained with
TRAINING_IMAGES, TEST_IMAGES = 50_000, 10_000  # of either data set
FULL = {'epochs': 150, 'limit_train': None, 'limit_test': None, 'width': 64}
UNDECIDED = 0.5  # share of log2 E from which on gates are called undecided
ENOUGH_SEEDS = 3  # of every setting, before anything is said of families of constraints
TOO_FEW = f'no direction is claimed from fewer than {ENOUGH_SEEDS} seeds of each setting'
LEARNED = 3.0  # times chance: below, gaps between numbers of experts say nothing


def accuracies(run: dict) -> dict[int, float]:
    """Accuracy in percent by number of active experts at test time; 0 for the dense network."""
    return {int(k): 100 * (1 - error) for k, error in run['error'].items()}


def gap(run: dict) -> float | None:
    """Accuracy with all experts minus accuracy with the best one alone, in points; None for the dense network."""
    found = accuracies(run)
    return found[max(found)] - found[1] if 1 in found else None


def row(setting: str, runs: list[dict], experts: int) -> list[str]:
    """One setting of ours: accuracy for every k, and the gap; empty without runs."""
    columns = 1 + experts + 1 + len(GATES)
    if not runs:
        return [NAMES[setting], *[''] * columns]
    cells = [NAMES[setting], str(len(runs))]
    if setting == 'dense':
        return [*cells, spread([accuracies(run)[0] for run in runs]), *[''] * (columns - 2)]
    cells += [spread([accuracies(run)[k] for run in runs]) for k in range(1, experts + 1)]
    return [*cells, spread(list(map(gap, runs))), *(spread([run['gates'][name] for run in runs]) for name in GATES)]


def settings_table(runs: dict[str, list[dict]], experts: int) -> list[str]:
    """All settings of one data set and number of experts."""
    heads = ['setting', 'seeds', *(f'k={k}' for k in range(1, experts + 1)), f'k={experts} minus k=1', *GATES.values()]
    return table(heads, [row(setting, runs.get(setting, []), experts) for setting in NAMES])


def published_table() -> list[str]:
    """What the paper's authors measured."""
    rows = [
        [NAMES[setting], *(f'{v:.2f}' for v in values), f'{values[-1] - values[0]:.2f}']
        for setting, values in PUBLISHED.items()
    ]
    rows.append([NAMES['dense'], f'{PUBLISHED_DENSE:.2f}', *[''] * 10])
    return table(['setting', *(f'k={k}' for k in range(1, 11)), 'k=10 minus k=1'], rows)


def finding(runs: dict[str, list[dict]]) -> str:
    """One sentence on the paper's finding: soft gaps against hard gaps."""
    gaps = {
        family: [gap(run) for setting in members for run in runs.get(setting, [])]
        for family, members in FAMILIES.items()
    }
    if not all(gaps.values()):
        return 'The finding cannot be judged yet: it takes soft and hard runs.'
    members = [run for setting, found in runs.items() if setting != 'dense' for run in found]
    learned = mean(max(accuracies(run).values()) / CHANCE[run['dataset']] for run in members)
    if learned < LEARNED:
        return f'The finding cannot be judged: the networks are right only {learned:.1f} times as often as a guess.'
    soft, hard = mean(gaps['soft']), mean(gaps['hard'])
    by_chance = hypot(*(sampling_error(members) / sqrt(len(gaps[family])) for family in gaps))
    apart = welch(gaps['soft'], gaps['hard'])
    if fewest_seeds(runs) < ENOUGH_SEEDS:
        seen = TOO_FEW
    elif abs(soft - hard) <= by_chance or not (apart and apart.apart):
        seen = f'a difference that chance explains, one standard error of testing being at most {by_chance:.1f}'
    else:
        seen = 'the direction that was published' if soft > hard else 'against the direction that was published'
    return (
        f'From one active expert to all, accuracy rises by {soft:.2f} points under soft and by {hard:.2f} points under '
        f'hard constraints: {seen} (published, on CIFAR-100: 4 to 5 against 0.6 to 1.6 points).{undecided(members)}'
    )


def fewest_seeds(runs: dict[str, list[dict]]) -> int:
    """The smallest number of runs of a setting of either family that was run at all."""
    counts = [len(runs[setting]) for members in FAMILIES.values() for setting in members if runs.get(setting)]
    return min(counts, default=0)


def sampling_error(runs: list[dict]) -> float:
    """Largest standard error of one run's gap in points: that of the difference of two independent accuracies."""
    right = mean(max(accuracies(run).values()) for run in runs) / 100
    images = min(run['scale']['limit_test'] or TEST_IMAGES for run in runs)
    return 100 * sqrt(2 * right * (1 - right) / images)


def undecided(runs: list[dict]) -> str:
    """A sentence on gates that leave all experts nearly alike: experts of such gates see a mixture of everything."""
    shares = [run['gates']['H_s'] / log2(run['num_experts']) for run in runs if run['num_experts'] > 1]
    if not shares or min(shares) < UNDECIDED:
        return ''
    least, most = (round(100 * share) for share in (min(shares), max(shares)))
    return (
        f' The gates have hardly learned to decide: their H_s is {least} to {most} % of the largest possible, and '
        'experts that all see the same mixture need no partners.'
    )


def specialisation(runs: dict[str, list[dict]]) -> str:
    """How far the experts of each family divide the classes among them; empty without either.

    A family is said to divide them more only where seeds enough show it.
    """
    gates = {
        family: [run['gates'] for setting in members for run in runs.get(setting, [])]
        for family, members in FAMILIES.items()
    }
    if not all(gates.values()):
        return ''
    bits = {family: [found['I_EY'] for found in members] for family, members in gates.items()}
    use = {family: [found['H_u'] for found in members] for family, members in gates.items()}
    apart = welch(bits['soft'], bits['hard'])
    if fewest_seeds(runs) < ENOUGH_SEEDS:
        seen = TOO_FEW
    elif not (apart and apart.apart):
        seen = "Welch's 95 % interval of the difference holds zero"
    else:
        more = 'soft' if apart.mean > 0 else 'hard'
        word = 'as was published' if more == 'soft' else 'against what was published'
        seen = f'more under {more} ones, {word}'
    return (
        f'I(E;Y) is {_range(bits["soft"])} bits under soft and {_range(bits["hard"])} under hard constraints: {seen}. '
        f'It is capped by use: experts that are never favourites divide nothing, and H_u is {_range(use["soft"])} '
        f'against {_range(use["hard"])} bits.'
    )


def _range(values: list[float]) -> str:
    return f'{mean(values):.2f} ({min(values):.2f} to {max(values):.2f})'


def scale_in_words(scale: dict) -> str:
    """How much was trained."""
    images = 'all training images' if scale['limit_train'] is None else f'{scale["limit_train"]:,} training images'
    tested = 'all test images' if scale['limit_test'] is None else f'{scale["limit_test"]:,} test images'
    epochs = '1 epoch' if scale['epochs'] == 1 else f'{scale["epochs"]} epochs'
    return f'{epochs}, {images}, {tested}, {scale["width"]} base channels'


def what_it_takes(runs: list[dict]) -> str:
    """A sentence on the time of the full schedule, from the pace of reduced runs; empty without any.

    Multiply-adds grow with the square of the width, and so, it is assumed, does time.
    """
    passes = FULL['epochs'] * TRAINING_IMAGES
    paces = []
    for run in runs:
        scale = run['scale']
        if run.get('train_seconds'):
            seen = scale['epochs'] * (scale['limit_train'] or TRAINING_IMAGES)
            paces.append(run['train_seconds'] / seen / scale['width'] ** 2)
    if not paces:
        return ''
    days = passes * median(paces) * FULL['width'] ** 2 / 86_400
    count = len(NAMES) * ENOUGH_SEEDS
    return (
        f'A run takes {passes:,} passes of an image at {FULL["width"]} base channels. At the pace of the reduced runs '
        f'below that is about {days:.0f} days, and {count} runs ({ENOUGH_SEEDS} seeds of every setting) take '
        f'{count * days:.0f}: it needs a GPU, and `python benchmarks/reproduce_soft_vs_hard.py --data-root DIR`.'
    )


def _section(group: dict) -> list[str]:
    title = 'Full schedule' if group['full'] else f'Reduced run: {scale_in_words(group["scale"])}'
    lines = [f'## {title}', '']
    if not group['full']:
        lines += [
            '**A reduced run.** It is no reproduction: its numbers may not be compared with the published ones, only',
            'its rows with each other.',
            '',
        ]
    for data, by_layer in group['data'].items():
        for layer, runs in by_layer.items():
            found = {setting: [run for run in runs if run['setting'] == setting] for setting in NAMES}
            experts, stage, residual = layer
            place = f'{experts} experts in stage {stage}' + (', residual' if residual else '')
            lines += [f'### {DATA_SETS[data]}, {place}', '', *settings_table(found, experts), '']
            lines += [finding(found), '']
            lines += [specialisation(found), ''] if specialisation(found) else []
    for (machine, versions, command), runs in origins(group['runs']).items():
        lines += [f'Measured on {dates(runs)} on {machine}; {versions}.  \nCommand: `{command}`', '']
    return lines


def page(groups: dict[str, dict]) -> str:
    """Markdown of all runs.

    Args:
        groups: by scale; each has ``full``, ``scale``, ``runs`` (all of them) and ``data`` (data set -> number of
            experts, stage and whether residual -> runs).
    """
    lines = [
        '# Soft or hard constraints: how many experts does a prediction need?',
        '',
        'ResNet-18 with one stage of experts, trained with two active experts, tested with 1 to E',
        '(`tools/analysis_tools/sweep_top_k.py`). The finding of [arXiv 2204.10598](https://arxiv.org/abs/2204.10598):',
        'experts that a *soft* constraint trains specialise and need partners, so accuracy with the best expert alone',
        'is several points below accuracy with all; experts under a *hard* one stay generalists, and the gap is small.',
        '',
        'Accuracy on the test set in percent after the last epoch, mean ± standard deviation (n − 1) over seeds. No',
        'epoch is chosen. The dense network has its accuracy in the first column. Empty rows have not been run.',
        'I(E;Y) between the favourite expert and the predicted class (high where experts divide the classes), H_s (low',
        'where the gate decides) and H_u (log2 E where all experts are used alike) are in bits, two experts active.',
        '',
    ]
    if not any(group['full'] for group in groups.values()):
        takes = what_it_takes([run for group in groups.values() for run in group['runs']])
        lines += ['## Full schedule', '', *settings_table({}, 10), '', f'Not run yet. {takes}'.strip(), '']
    for key in sorted(groups, key=lambda key: (not groups[key]['full'], key)):
        lines += _section(groups[key])
    lines += [
        '## Published',
        '',
        'CIFAR-100, ten experts, trained with k = 2, full schedule; stage and variant are not told for this table.',
        'Dense: one run.',
        '',
        *published_table(),
    ]
    return '\n'.join(lines) + '\n'
