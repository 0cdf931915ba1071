"""What a check of a GPU has found so far, written after each section, as tables, and what of it is wrong."""

from __future__ import annotations

import gc
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from common.record import write

from moe_det.common.console import say

LONGEST_ERROR = 2000  # characters
# of a loss, or of a parameter's largest gradient: rounding stays far below, a wrong choice far above
AGREES = 1e-3


class Deadline:
    """The time at which a section should end.

    Args:
        seconds: from now.
    """

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds

    def left(self) -> float:
        """Seconds that are left; negative ones when it is over."""
        return self._end - time.monotonic()


class Report:
    """Runs sections and keeps what they find.

    Args:
        path: the json to write.
        made: machine, versions and command.
        minutes: limit of all sections together.
    """

    def __init__(self, path: Path, made: dict, minutes: float) -> None:
        self.path, self.made = path, made
        self.sections: dict[str, dict] = {}
        self._all = Deadline(60 * minutes)

    def run(self, name: str, limit: float, measure: Callable[[Deadline], dict]) -> None:
        """Runs a section; an error of it is a result too, and stops no other.

        Args:
            name: of the section.
            limit: seconds after which it should end; fewer when less is left of all.
            measure: looks at the deadline between its parts, and returns what it found.
        """
        deadline, begin = Deadline(min(limit, self._all.left())), time.monotonic()
        section: dict = {}
        if deadline.left() <= 0:
            section['error'] = 'not run: no time was left'
        else:
            try:
                section['results'] = measure(deadline)
            except Exception as error:
                section['error'] = f'{type(error).__name__}: {error}'[:LONGEST_ERROR]
                section['traceback'] = traceback.format_exc()[-LONGEST_ERROR:]
        section['seconds'] = round(time.monotonic() - begin, 1)
        self.sections[name] = section
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        write(self.path, {'made': self.made, 'sections': self.sections})
        say(f'{name}: {section.get("error") or "done"} ({section["seconds"]:g} s)')


def problems(sections: dict[str, dict]) -> Iterator[str]:
    """What should not be so, a line each."""
    for name, section in sections.items():
        if 'error' in section:
            yield f'{name}: {section["error"]}'
    for head, found in _results(sections, 'agreement').items():
        for what in ('loss', 'gradient'):
            if not found[what] <= AGREES:
                yield f"agreement: {head}: {what} differs from the CPU's by {found[what]:.1e}, more than {AGREES:g}"
    for head, found in _results(sections, 'determinism').items():
        if found:
            what = found if isinstance(found, str) else f'two runs differ in {", ".join(found[:3])}'
            yield f'determinism: {head}: {what}'


def _results(sections: dict[str, dict], name: str) -> dict:
    return sections.get(name, {}).get('results', {})


def tables(sections: dict[str, dict]) -> str:
    """All sections as text."""
    lines: list[str] = []
    agreement = _results(sections, 'agreement')
    if agreement:
        lines += ['', 'Against the CPU, float32: relative differences, and lines at which the host waits']
        for head, found in agreement.items():
            waits = ', '.join(f'{line} ({number})' for line, number in found['waits'].items()) or 'none'
            lines.append(f'  {head:<18} loss {found["loss"]:.1e}  gradient {found["gradient"]:.1e}  waits: {waits}')
    for case, found in _results(sections, 'speed').items():
        lines += ['', *_speed_lines(case, found)]
    for kind, found in _results(sections, 'profile').items():
        lines += [
            '',
            f'A training step of {kind} in fp16: {found["step ms"]:g} ms, GPU busy {found["GPU busy ms"]:g} ms, '
            f'{found["launches"]} launches, {sum(found["waits"].values())} waits',
        ]
    repeated = _results(sections, 'determinism')
    if repeated:
        equal = sum(not found for found in repeated.values())
        lines += [
            '',
            f'Two deterministic trainings are equal bit for bit with {equal} of {len(repeated)} kinds of head',
        ]
    search = _results(sections, 'search')
    if search:
        lines += ['', 'cudnn_benchmark with a new number of rows in each step, ms: first pass, second pass']
        lines += [f'  {name:<4}{found["first pass ms"]} {found["second pass ms"]}' for name, found in search.items()]
    found = _results(sections, 'operators')
    if found:
        lines += ['', 'Stand-ins for operators: ' + ', '.join(f'{name} {value}' for name, value in found.items())]
    return '\n'.join(lines)


def _speed_lines(case: str, found: dict) -> Iterator[str]:
    if 'error' in found:
        yield f'{case}: {found["error"]}'
        return
    yield f'{case:<22}{"training ms":>12}{"of dense":>10}{"inference ms":>14}{"of dense":>10}{"peak GiB":>10}'
    for kind in found['training']:
        numbers = []
        for step in ('training', 'inference'):
            one = found[step][kind]
            numbers += [one['phases']['total']['median_ms'], one['of dense']['median']]
        peak = found['memory'][kind]['peak_beyond_state'] / 1024
        yield f'  {kind:<20}{numbers[0]:>12.1f}{numbers[1]:>10.3f}{numbers[2]:>14.1f}{numbers[3]:>10.3f}{peak:>10.2f}'
