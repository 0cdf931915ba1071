"""Whether the experts of a layer are in use: the judgement behind a collapse check.

Usage is the lowest demand on a router. Balanced experts may still all do the same; that is for
``size_specialization.py`` to say.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields

from ..routing.metrics import LIVING_SHARE, Utilisation
from ..routing.routing import Usage
from .slots import expert_name
from .usage import FEWEST_ROWS, fewest_living, living_by_slot, usage_in_slots


@dataclass(frozen=True)
class HealthLimits:
    """What counts as healthy.

    Attributes:
        living_share: an expert is living if it holds more than this share of the weights, a copy of a shard of the
            shard's.
        max_load_ratio: largest load ratio that an expert may have (1.0 is the fair share); None sets no limit.
        min_living: least number of living experts, in every shard where there are shards; None asks for more than a
            single row uses.
    """

    living_share: float = LIVING_SHARE
    max_load_ratio: float | None = None
    min_living: int | None = None


@dataclass(frozen=True)
class RowsHealth:
    """How some rows of a layer used its experts.

    Attributes:
        part: ``'all rows'``, or ``'level 2'`` for the rows of one level.
        used: their utilisation, its ``living`` by the limits' ``living_share``.
        problems: sentences about what is wrong; empty when healthy.
        judged: False for rows too few to judge.
    """

    part: str
    used: Utilisation
    problems: tuple[str, ...]
    judged: bool


@dataclass(frozen=True)
class LayerHealth:
    """The health of one layer.

    Attributes:
        layer: module path.
        top_k: K, experts that a row uses.
        parts: all rows first, then each level where usage is balanced inside levels.
        slots: shards, of each of which a row uses one copy; 1 without shards.
    """

    layer: str
    top_k: int
    parts: tuple[RowsHealth, ...]
    slots: int = 1

    @property
    def problems(self) -> list[str]:
        """What is wrong, with the place."""
        return [f'{self.layer}, {part.part}: {text}' for part in self.parts for text in part.problems]

    @property
    def unjudged(self) -> list[str]:
        """Parts that had too few rows."""
        return [f'{self.layer}, {part.part}' for part in self.parts if not part.judged]

    def to_dict(self) -> dict:
        """Plain Python values, for JSON."""
        parts = [
            {'part': part.part, **part.used.to_dict(), 'problems': list(part.problems), 'judged': part.judged}
            for part in self.parts
        ]
        experts = len(self.parts[0].used.load_ratio)
        about = {'num_experts': experts, 'top_k': self.top_k, 'slots': self.slots}
        return {**about, 'healthy': not self.problems, 'parts': parts}


def judge_layer(
    layer: str,
    usage: Usage,
    top_k: int,
    limits: HealthLimits | None = None,
    *,
    by_level: bool = False,
    slots: int = 1,
) -> LayerHealth:
    """Judges a layer.

    A layer has collapsed if no more experts live than a single row uses, although there are more; where a row uses
    all experts, if only one of them lives. With shards each of them is judged, of which a row uses one copy.

    Args:
        layer: module path, for messages.
        usage: sums per balance group, not detached from them.
        top_k: K.
        limits: what counts as healthy.
        by_level: judge each balance group too.
        slots: shards that the experts are copies of; 1 without shards.

    Raises:
        ValueError: there were no rows.
    """
    limits = limits or HealthLimits()
    parts = [_judge('all rows', usage, top_k, limits, slots)]
    groups = usage.rows.shape[0]
    if by_level and groups > 1:
        for level in range(groups):
            rows = Usage(*(getattr(usage, f.name)[level : level + 1] for f in fields(Usage)))
            if rows.rows.sum() > 0:
                parts.append(_judge(f'level {level}', rows, top_k, limits, slots))
    return LayerHealth(layer, top_k, tuple(parts), slots)


def _judge(part: str, usage: Usage, top_k: int, limits: HealthLimits, slots: int) -> RowsHealth:
    used = usage_in_slots(usage, slots, limits.living_share)
    experts = len(used.importance_share)
    copies = experts // slots
    judged = used.rows >= FEWEST_ROWS
    problems = []
    if judged:
        least, why = limits.min_living, ''
        if least is None:
            least, why = fewest_living(experts, top_k, slots), f', since a row uses {top_k // slots}'
        for slot, living in enumerate(living_by_slot(used, slots, limits.living_share)):
            where, what = ('', 'experts') if slots == 1 else (f'shard {slot}: ', 'copies')
            if living < least and copies > 1:
                problems.append(
                    f'{where}{living} of {copies} {what} hold more than {limits.living_share:.3g} of the weights each; '
                    f'expected {least} or more{why}'
                )
        if limits.max_load_ratio is not None and max(used.load_ratio) > limits.max_load_ratio:
            busiest = max(range(experts), key=lambda e: used.load_ratio[e])
            problems.append(
                f'{expert_name(busiest, experts, slots)} has {used.load_ratio[busiest]:.2f} times the fair load, '
                f'the limit is {limits.max_load_ratio:g}'
            )
    return RowsHealth(part, used, tuple(problems), judged)


def health_table(layers: Sequence[LayerHealth]) -> str:
    """A plain-text table, one line per layer and, where there are several parts, per level."""
    names = {
        id(part): layer.layer if i == 0 else f'  {part.part}' for layer in layers for i, part in enumerate(layer.parts)
    }
    width = max([len('layer'), *map(len, names.values())])
    widest = max(len(layer.parts[0].used.load_ratio) for layer in layers)
    column = 5 * widest
    head = f'{"importance":<{column}}  {"load (1.00 = fair)":<{max(column, 18)}}'
    lines = [f'{"layer":{width}}  {"rows":>7}  {"living":>7}  H_s bits  H_u bits  {head}  verdict']
    for layer in layers:
        for part in layer.parts:
            used = part.used
            shares = ' '.join(f'{share:4.0%}' for share in used.importance_share)
            load = ' '.join(f'{ratio:4.2f}' for ratio in used.load_ratio)
            verdict = 'COLLAPSED' if part.problems else 'healthy' if part.judged else 'too few rows'
            living = f'{used.living}/{len(used.load_ratio)}'
            lines.append(
                f'{names[id(part)]:{width}}  {used.rows:>7}  {living:>7}  {used.row_entropy:8.2f}  '
                f'{used.batch_entropy:8.2f}  {shares:<{column}}  {load:<{max(column, 18)}}  {verdict}'
            )
    return '\n'.join(lines)


def health_report(layers: Sequence[LayerHealth], limits: HealthLimits, about: Mapping[str, object]) -> dict:
    """The result as one JSON object: ``healthy``, ``limits``, ``problems``, ``layers``, and what it is about."""
    problems = [text for layer in layers for text in layer.problems]
    return {
        **about,
        'healthy': not problems,
        'limits': asdict(limits),
        'problems': problems,
        'layers': {layer.layer: layer.to_dict() for layer in layers},
    }
