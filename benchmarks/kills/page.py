"""The page beside the record of kill_and_resume.py."""

from __future__ import annotations

from collections import Counter

from common.page import table


def summary(record: dict) -> str:
    """The record as a page."""
    kills = [kill for run in record['runs'] for kill in run['kills']]
    places = Counter(kill['place'] for kill in kills)
    starts = sum(kill['aim'] == 'start' for kill in kills)
    equal = sum(run['equal'] for run in record['runs'])
    resumed = sum(kill['resumed'] for kill in kills)
    lines = [
        '# Kill and resume',
        '',
        f'{len(kills)} kills in {len(record["runs"])} runs of {record["iterations"]} iterations, '
        f'`{record["command"]}`, {record["seconds"]:.0f} s on {record["machine"]}, {record["versions"]}, '
        f'{record["date"]}.',
        '',
        *table(
            ['', ''],
            [
                ['kills after which the run went on from the last checkpoint noted', f'{resumed} of {len(kills)}'],
                ['runs that ended bit for bit as the uninterrupted one', f'{equal} of {len(record["runs"])}'],
                ['kills while the process started', starts],
                ['kills within the write of a checkpoint', places['within a checkpoint write']],
                ['kills between a checkpoint and the note of it', places['between checkpoint and note']],
                ['problems', sum(len(run['problems']) for run in record['runs'])],
            ],
        ),
        '',
        'Compared at the end: weights, optimizer, schedules, history of losses and learning rates. Half of the runs',
        'have a hard constraint, half two data workers (the run to compare with has none), half slowed-down writes.',
        '',
    ]
    return '\n'.join(lines)
