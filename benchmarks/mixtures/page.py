"""The page that benchmarks/reproduce_expert_specialization.py writes from its record."""

from __future__ import annotations

from math import hypot, sqrt
from statistics import mean, stdev

from common.page import dates, origins, table

from .published import AUTHORS, DATA_SETS, PUBLISHED, RUNS_EACH

EPOCHS = 20
ENOUGH_SEEDS = 5
EVENLY_USED = 2.2  # bits of log2 5 = 2.32
APART = 2.0  # standard errors of a difference of means from which on it is named
ROWS = {
    'single': 'single expert',
    'original': 'original gate',
    'original_importance': 'original + importance',
    'original_similarity': 'original + similarity',
    'original_similarity_pairs': 'original + similarity, corrected normalisation',
    'attentive': 'attentive gate',
    'attentive_importance': 'attentive + importance',
    'attentive_similarity': 'attentive + similarity',
    'attentive_similarity_pairs': 'attentive + similarity, corrected normalisation',
    'distilled_importance': 'distilled from attentive + importance',
    'distilled_similarity': 'distilled from attentive + similarity',
}
TWENTY = {
    'twenty_attentive': 'attentive + importance',
    'twenty_distilled': 'distilled from it, by the task loss alone',
    'twenty_distilled_kl': 'distilled from it, with the KL beside the task loss',
}
COLUMNS = {  # key of a run -> name and, of what was published, attribute
    'train_error': ('train error', 'train_error'),
    'test_error': ('test error', 'test_error'),
    'test_I_EY': ('I(E;Y)', 'information'),
    'test_H_s': ('H_s', 'row_entropy'),
    'test_H_u': ('H_u', 'batch_entropy'),
}

INTRODUCTION = """# Mixtures of small classifiers: errors and who does what

Five small experts and a gate on MNIST and Fashion-MNIST: the rows of
[arXiv 2302.14703](https://arxiv.org/abs/2302.14703), each with its published setting (`configs/classification/`,
[classification.md](../classification.md)). Adam 1e-3, batch 512; errors and measures after the last epoch, over the
whole train or test set; I(E;Y), H_s and H_u in bits on the test set.

**What is compared with what.** A row of the paper's tables is one run, that with the lowest *train* error of ten runs
at every point of a grid (10 to 140 runs); its ± is the spread of the test errors of all of them. The authors'
repository has the runs themselves: all of MNIST's, and the last errors, with two digits, of most of Fashion-MNIST's. So
the first table of each data set sets our mean beside the mean of *their ten runs at the same setting*, ± standard
deviation (n − 1); a test error is named where the means are more than two standard errors apart. The second table has
our run with the lowest train error beside the paper's. The authors' train error is that of each batch of the last epoch
after its own step.

Similarity rows have the normalisation of the published code, which leaves the sum over pairs of one term undivided, and
distances of the pixels as they are, as in the code's state when MNIST was run (a later one divides them by the
largest; H_u tells which it was). *Corrected normalisation* divides both terms by N² and distances by the
largest at the same factors (attentive: beta_d 0.01), which leaves next to no regulariser. Beta_d of Fashion-MNIST is
not published; attentive rows have the one of the only printed run with the table's train error, the original gate that
of MNIST.
Distilled rows are fitted by the task loss alone, to attentive runs of their own with the published weights (MNIST:
importance 0.4, beta_d 1e-3; Fashion-MNIST: importance 1.0).
"""

TWENTY_EXPLAINED = """The published distillation, by the task loss alone, raises the error on CIFAR-100 with 20 experts
from .447 to .685. The same comparison here, with 20 of this data set's experts, beside a gate that is also
fitted to the attentive gate's decisions (`model.moe.gate.kl_weight=1`). Nothing is published for it."""

Runs = dict[tuple[str, str], list[dict]]


def by_row(runs: list[dict]) -> Runs:
    """(data set, row) -> runs by seed."""
    found: Runs = {}
    for run in sorted(runs, key=lambda run: run['seed']):
        found.setdefault((run['data_set'], run['row']), []).append(run)
    return found


def average(runs: list[dict], key: str) -> float | None:
    """Mean over seeds; None without runs, or where the model has no gate."""
    numbers = [run[key] for run in runs if run[key] is not None]
    return mean(numbers) if numbers else None


def spread(runs: list[dict], key: str) -> str:
    """Mean and, from two seeds on, standard deviation (n - 1)."""
    numbers = [run[key] for run in runs if run[key] is not None]
    if not numbers:
        return ''
    return short(mean(numbers)) + (f' ± {short(stdev(numbers))}' if len(numbers) > 1 else '')


def short(number: float | None) -> str:
    """Three digits, without the leading zero."""
    if number is None:
        return ''
    text = f'{number:.3f}'
    return text[1:] if text.startswith('0') else text


def of_authors(data_set: str, row: str, attribute: str) -> tuple[float, float] | None:
    """Mean and standard deviation of the authors' runs at a row's setting; None where they are not public."""
    authors = AUTHORS[data_set].get(row)
    return getattr(authors, attribute) if authors else None


def means_table(data_set: str, found: Runs, beside_authors: bool = True, rows: dict[str, str] = ROWS) -> list[str]:
    """Ours, mean over seeds, beside the mean of the authors' runs; a row without runs stays empty."""
    heads = ['row', 'seeds']
    for name, _ in COLUMNS.values():
        heads += [name, 'theirs'] if beside_authors else [name]
    lines = []
    for row, name in rows.items():
        runs = found.get((data_set, row), [])
        cells = [name, str(len(runs) or '')]
        for key, (_, attribute) in COLUMNS.items():
            cells.append(spread(runs, key))
            if beside_authors:
                theirs = of_authors(data_set, row, attribute)
                cells.append(' ± '.join(map(short, theirs)) if theirs else '')
        lines.append(cells)
    return table(heads, lines)


def best_table(data_set: str, found: Runs, beside_published: bool = True) -> list[str]:
    """The run of each row with the lowest train error, beside the paper's, which was chosen likewise."""
    heads = ['row', 'best of']
    for name, _ in COLUMNS.values():
        heads += [name, 'published'] if beside_published else [name]
    lines = []
    for row, name in ROWS.items():
        runs, published = found.get((data_set, row)), PUBLISHED[data_set].get(row)
        if not runs:
            continue
        best = min(runs, key=lambda run: run['train_error'])
        of_runs = f'{len(runs)}, published: {published.chosen_from}' if beside_published and published else len(runs)
        cells = [name, str(of_runs)]
        for key, (_, attribute) in COLUMNS.items():
            cells.append(short(best[key]))
            if beside_published:
                cells.append(short(published and getattr(published, attribute)))
        lines.append(cells)
    return table(heads, lines)


def standard_errors_apart(runs: list[dict], theirs: tuple[float, float]) -> float | None:
    """Difference of the mean test errors, ours minus theirs, in standard errors of it; None for a single run."""
    errors = [run['test_error'] for run in runs]
    if len(errors) < 2:
        return None
    error = hypot(stdev(errors) / sqrt(len(errors)), theirs[1] / sqrt(RUNS_EACH))
    return (mean(errors) - theirs[0]) / error


def disagreements(data_set: str, found: Runs) -> list[str]:
    """Sentences for rows whose mean test error is behind the paper's table or not that of the authors' runs."""
    sentences = []
    for row, published in PUBLISHED[data_set].items():
        runs = found.get((data_set, row), [])
        ours = average(runs, 'test_error')
        if ours is None:
            continue
        theirs = of_authors(data_set, row, 'test_error')
        apart = standard_errors_apart(runs, theirs) if theirs else None
        behind = ours > published.test_error + published.std
        if not behind and (apart is None or abs(apart) <= APART):
            continue
        text = f'{ROWS[row]}: test error {short(ours)}, in the table {short(published.test_error)}'
        text += f' ± {short(published.std)}, the best by train error of {published.chosen_from} runs.'
        sentences.append(f'{text} {_agreement(theirs, apart)}'.rstrip())
    return sentences


def _agreement(theirs: tuple[float, float] | None, apart: float | None) -> str:
    """What the authors' runs at the same setting say about ours; nothing about a single run of ours."""
    if theirs is None:
        return "The authors' runs at this setting are not public."
    if apart is None:
        return ''
    verdict = 'ours agree with them' if abs(apart) <= APART else f'ours are {"higher" if apart > 0 else "lower"}'
    reason = '' if abs(apart) <= APART else '; we do not know the reason'
    have = f"The authors' ten runs at this setting have {short(theirs[0])} on average"
    return f'{have}: {verdict} ({apart:+.1f} standard errors){reason}.'


def targets(found: Runs) -> list[tuple[str, str]]:
    """What was to be reached -> ``met``, ``not met``, ``not run``, and of several rows which are which."""
    checks = []
    for data_set, name in DATA_SETS.items():
        rows = {row: published for row, published in PUBLISHED[data_set].items() if row != 'single'}
        errors = {row: average(found.get((data_set, row), []), 'test_error') for row in rows}
        verdicts = {
            row: None if errors[row] is None else errors[row] <= published.test_error + published.std
            for row, published in rows.items()
        }
        text = f'{name}: mean test error of every row with experts at or below the published one + one std'
        checks.append((text, _verdict(verdicts)))
    for data_set, name in DATA_SETS.items():
        apart = {
            row: standard_errors_apart(found.get((data_set, row), []), authors.test_error)
            for row, authors in AUTHORS[data_set].items()
        }
        verdicts = {row: None if errors is None else abs(errors) <= APART for row, errors in apart.items()}
        text = f"{name}: mean test error of every row within two standard errors of that of the authors' ten runs"
        checks.append((text, _verdict(verdicts)))
    errors = {row: average(found.get(('fashion_mnist', row), []), 'test_error') for row in ROWS}
    for row in ('attentive_importance', 'attentive_similarity'):
        known = None not in (errors[row], errors['original'])
        verdict = errors[row] <= errors['original'] if known else None
        checks.append((f'Fashion-MNIST: {ROWS[row]} not behind the original gate', _verdict({row: verdict})))
    for data_set, name in DATA_SETS.items():
        # the corrected normalisation leaves next to no regulariser at the published factors
        regularised = [row for row in PUBLISHED[data_set] if row.endswith(('importance', 'similarity'))]
        used = {row: average(found.get((data_set, row), []), 'test_H_u') for row in regularised}
        verdicts = {row: None if bits is None else bits >= EVENLY_USED for row, bits in used.items()}
        checks.append((f'{name}: H_u of rows with a regulariser, or distilled from one, >= 2.2', _verdict(verdicts)))
    return checks


def _verdict(by_row: dict[str, bool | None]) -> str:
    if len(by_row) == 1:
        (verdict,) = by_row.values()
        return {True: 'met', False: 'not met', None: 'not run'}[verdict]
    failed, missing = ([row for row, verdict in by_row.items() if verdict is value] for value in (False, None))
    if len(missing) == len(by_row):
        return 'not run'
    word = 'not met' if failed else 'met so far' if missing else 'met'
    named = [(what, rows) for what, rows in (('not met', failed), ('not run', missing)) if rows]
    details = [f'{what}: {"; ".join(ROWS[row] for row in rows)}' for what, rows in named]
    return f'{word} ({" / ".join(details)})' if details else word


def measured_on(runs: list[dict]) -> list[str]:
    """Machine, versions and command of the runs, with their seconds; once where they are the same."""
    lines = []
    for (machine, versions, command), group in origins(runs).items():
        seconds, cpu = (mean(run[key] for run in group) for key in ('seconds', 'cpu_seconds'))
        lines += [
            f'Measured on {dates(group)} on {machine}; {versions}. {len(group)} runs of {seconds:.0f} s on average '
            f'({cpu:.0f} s',
            f'of processor time). Command: `{command}`',
            '',
        ]
    return lines


def section(epochs: int, runs: list[dict]) -> list[str]:
    """All runs of so many epochs."""
    found, full = by_row(runs), epochs == EPOCHS
    lines = [f'## Published schedule: {EPOCHS} epochs' if full else f'## Reduced runs: {epochs} of {EPOCHS} epochs', '']
    if not full:
        lines += ['**No reproduction:** these numbers may not be compared with the published ones.', '']
    for data_set, name in DATA_SETS.items():
        if not full and not any(key[0] == data_set for key in found):
            continue
        lines += [f'### {name}', '', *means_table(data_set, found, beside_authors=full), '']
        missing = [ROWS[row] for row in ROWS if (data_set, row) not in found]
        few = [ROWS[row] for row in ROWS if 0 < len(found.get((data_set, row), [])) < ENOUGH_SEEDS]
        if len(missing) == len(ROWS):
            lines += ['Not run yet: all rows.', '']
            continue
        lines += [f'Not run yet: {"; ".join(missing)}.', ''] if missing else []
        lines += [f'Fewer than {ENOUGH_SEEDS} seeds so far: {"; ".join(few)}.', ''] if few and full else []
        if full:
            sentences = disagreements(data_set, found)
            about = "Test errors behind the paper's table by more than its ±, or not those of the authors' runs:"
            lines += [about + (' none.' if not sentences else ''), '']
            lines += [f'- {sentence}' for sentence in sentences] + ([''] if sentences else [])
        lines += ['Of each row the run with the lowest train error, as the published ones are chosen:', '']
        lines += [*best_table(data_set, found, beside_published=full), '']
    if full:
        lines += ['### Targets', '', *(f'- {text}: **{verdict}**' for text, verdict in targets(found)), '']
    for data_set, name in DATA_SETS.items():
        if any((data_set, row) in found for row in TWENTY):
            lines += [f'### {name} with 20 experts: what a plain gate can be fitted to', '', TWENTY_EXPLAINED, '']
            lines += [*means_table(data_set, found, beside_authors=False, rows=TWENTY), '']
    return lines + measured_on(runs)


def page(runs: list[dict]) -> str:
    """Markdown of all runs, the published schedule first."""
    lines = INTRODUCTION.splitlines() + ['']
    lines += section(EPOCHS, [run for run in runs if run['epochs'] == EPOCHS])
    for epochs in sorted({run['epochs'] for run in runs} - {EPOCHS}, reverse=True):
        lines += section(epochs, [run for run in runs if run['epochs'] == epochs])
    return '\n'.join(lines).rstrip() + '\n'
