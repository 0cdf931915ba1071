"""Runs side by side: average precision by size over seeds, and cost, as a table for a README."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from ..errors import DataError
from .definitions import MISSING

MEASURES = ('AP', 'AP50', 'AP75', 'AP_S', 'AP_M', 'AP_L')
SHOWN = ('AP', 'AP_S', 'AP_M', 'AP_L')


@dataclass(frozen=True)
class RunResult:
    """One checkpoint, evaluated.

    Attributes:
        name: what the run is called; the seeds of one setting share it.
        config: file.
        checkpoint: file.
        checkpoint_sha256: of its bytes.
        seed: of the training, or None where the checkpoint does not tell.
        experts: ``'dense'``, or the kind of constraint, K, E and the routing unit in words.
        ap: COCO's average precisions by name, from 0 to 1; None for a size without objects.
        images: number of test images.
        annotations: their COCO json.
        annotations_sha256: of its bytes.
        params: number of parameters.
        active_params: of these, those that a single routing row uses.
        macs: multiply-adds of convolutions and matrix products for one image; None where they cannot be counted.
        input_size: height and width of that image in the network.
    """

    name: str
    config: str
    checkpoint: str
    checkpoint_sha256: str
    seed: int | None
    experts: str
    ap: Mapping[str, float | None]
    images: int
    annotations: str
    annotations_sha256: str
    params: int
    active_params: int
    macs: int | None
    input_size: tuple[int, int]


@dataclass(frozen=True)
class Spread:
    """A measure over seeds.

    Attributes:
        values: one per seed.
        mean: their mean; None without values.
        deviation: their standard deviation with n - 1; None for fewer than two.
    """

    values: tuple[float, ...]
    mean: float | None
    deviation: float | None

    @staticmethod
    def of(values: Sequence[float | None]) -> Spread:
        """Of the values that are there; nothing when one is missing, since the seeds would not be comparable."""
        known = [value for value in values if value is not None]
        if not known or len(known) < len(values):
            return Spread((), None, None)
        deviation = statistics.stdev(known) if len(known) > 1 else None
        return Spread(tuple(known), statistics.fmean(known), deviation)

    def points(self) -> str:
        """In points: ``84.9 ± 0.3``; a single seed has no ±."""
        if self.mean is None or math.isnan(self.mean):
            return MISSING
        text = f'{100 * self.mean:.1f}'
        return text if self.deviation is None else f'{text} ± {100 * self.deviation:.1f}'


@dataclass(frozen=True)
class Row:
    """The seeds of one setting."""

    name: str
    runs: tuple[RunResult, ...]
    measures: Mapping[str, Spread]


def compare(results: Sequence[RunResult]) -> list[Row]:
    """Groups results by name, in the order of their first appearance.

    Raises:
        DataError: results that cannot be compared fairly: other test images, one checkpoint twice, or models of
            different size under one name.
    """
    by_name: dict[str, list[RunResult]] = {}
    for result in results:
        by_name.setdefault(result.name, []).append(result)
        if result.annotations_sha256 != results[0].annotations_sha256:
            raise DataError(
                f'{result.name} is tested on {result.annotations}, {results[0].name} on {results[0].annotations}: '
                'their average precisions cannot be compared; name one data folder with --data-root'
            )
    rows = []
    for name, runs in by_name.items():
        refuse_equal([(run.checkpoint, run.checkpoint_sha256) for run in runs], f'{name}: ')
        for run in runs:
            if (run.params, run.active_params, run.experts) != (runs[0].params, runs[0].active_params, runs[0].experts):
                raise DataError(
                    f'{name}: {run.checkpoint} ({run.experts}, {run.params:,} parameters) is another model than '
                    f'{runs[0].checkpoint} ({runs[0].experts}, {runs[0].params:,}); give it a name of its own'
                )
        measures = {measure: Spread.of([run.ap[measure] for run in runs]) for measure in MEASURES}
        rows.append(Row(name, tuple(runs), measures))
    return rows


def refuse_equal(checkpoints: Sequence[tuple[str, str]], where: str = '') -> None:
    """Refuses checkpoints of which one is given twice: a copy is not another training.

    Args:
        checkpoints: path and digest of each.
        where: beginning of the message.

    Raises:
        DataError: two digests are the same.
    """
    seen: dict[str, str] = {}
    for path, digest in checkpoints:
        if digest in seen:
            raise DataError(f'{where}{path} and {seen[digest]} are the same weights')
        seen[digest] = path


def comparison_markdown(rows: Sequence[Row]) -> str:
    """A Markdown table, and below it what the numbers are."""
    head = ['run', 'experts', 'seeds', *SHOWN, 'parameters', 'active', 'GMAC']
    lines = [
        '| ' + ' | '.join(head) + ' |',
        '|' + '|'.join(['---', '---', *['---:'] * (len(head) - 2)]) + '|',
    ]
    for row in rows:
        run = row.runs[0]
        cells = [row.name.replace('|', '\\|'), run.experts, str(len(row.runs))]
        cells += [row.measures[measure].points() for measure in SHOWN]
        cells += [_millions(run.params), _millions(run.active_params), _giga([run.macs for run in row.runs])]
        lines.append('| ' + ' | '.join(cells) + ' |')
    return '\n'.join([*lines, '', _legend(rows)])


def _millions(number: int) -> str:
    return f'{number / 1e6:.2f} M'


def _giga(numbers: Sequence[int | None]) -> str:
    known = [number for number in numbers if number is not None]
    # seeds may choose other experts, or under a hard constraint fewer; experts of one layer cost the same
    return f'{statistics.fmean(known) / 1e9:.2f}' if len(known) == len(numbers) else MISSING


def _legend(rows: Sequence[Row]) -> str:
    run = rows[0].runs[0]
    sentences = [f'AP in points (COCO, box, {run.images} test images).']
    if any(len(row.runs) > 1 for row in rows):
        sentences.append('± is the standard deviation over seeds (n − 1).')
    single = [row.name for row in rows if len(row.runs) == 1]
    if single:
        sentences.append(
            f'One seed each: {", ".join(single)}; without more seeds a difference between runs may be chance.'
        )
    sentences.append('Active: parameters that one routing decision uses.')
    sizes = {f'{height} × {width}' for row in rows for r in row.runs for height, width in [r.input_size]}
    if any(r.macs is not None for row in rows for r in row.runs):
        sentences.append(
            'GMAC: billions of multiply-adds of convolutions and matrix products, counted while one test image '
            f'({", ".join(sorted(sizes))}) ran.'
        )
    return ' '.join(sentences)


def comparison_dict(rows: Sequence[Row]) -> dict:
    """Plain Python values, for JSON: per name the seeds' spread and every run."""
    return {
        'runs': {
            row.name: {
                'n': len(row.runs),
                'measures': {name: asdict(spread) for name, spread in row.measures.items()},
                'checkpoints': [{**asdict(run), 'ap': dict(run.ap)} for run in row.runs],
            }
            for row in rows
        }
    }
