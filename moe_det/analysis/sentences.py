"""The verdict on a layer in words: once for everyone, once with what it rests on."""

from __future__ import annotations

from .definitions import MINUS
from .inputs import QUERY
from .random_gates import BEYOND
from .result import ALPHA, LEVEL, MIN_CRAMERS_V, NOT, NOT_BY_SIZE, SCALE, SIZE, SORTED, UNDETERMINED

# what is said of levels of a pyramid, which object queries do not have
_OF_LEVELS = (
    ' even within a pyramid level',
    ' even within a level',
    ' within a pyramid level',
    ' within a level',
    ', or by pyramid level',
    ' of a level',
    ' beyond the level',
    ' | level',
)
COCO_SIZES = {'AP_S': 'small objects', 'AP_M': 'medium objects', 'AP_L': 'large objects'}


def plain_sentence(layer: dict) -> str:
    """The verdict in one sentence that needs no statistics.

    Args:
        layer: results of a layer (format 2), complete but for ``plain`` and ``sentence``.
    """
    return _without_levels(layer, _plain_sentence(layer))


def layer_sentence(layer: dict) -> str:
    """The verdict in one sentence with the numbers that it rests on.

    Args:
        layer: results of a layer (format 2), complete but for ``plain`` and ``sentence``.
    """
    return _without_levels(layer, _layer_sentence(layer))


def _without_levels(layer: dict, sentence: str) -> str:
    """The sentence, of a layer of queries without what it says of levels."""
    for words in _OF_LEVELS if layer.get('unit') == QUERY else ():
        sentence = sentence.replace(words, '')
    return sentence


def _plain_sentence(layer: dict) -> str:
    verdict = layer['verdict']
    if verdict == SIZE:
        return (
            'Yes: even within a pyramid level its experts serve different sizes, more than untrained gates would, and '
            f'the detector needs that{_for_which_sizes(layer)}.'
        )
    if verdict == SORTED:
        return f'In part: its experts get objects of different size even within a level, {_doubt(layer)}.'
    if verdict == NOT_BY_SIZE:
        if layer_sorts(layer):
            more = (
                'no more than an untrained gate would'
                if beyond_random(layer) is False
                else 'but whether more than an untrained gate would is not known'
            )
            joined = 'but it sorts' if beyond_random(layer) is False else 'and it sorts'
            return (
                f'Not by size: the detector needs its choice of expert, {joined} the objects of a level by size {more}.'
            )
        return (
            'Not by size: the detector needs its choice of expert, but nothing shows that the experts differ by size '
            'within a level.'
        )
    if verdict == SCALE:
        return (
            'By image only: images of large and of small objects go to different experts, but nothing shows that the '
            'experts differ by size within a pyramid level.'
        )
    if verdict == LEVEL:
        return 'No: its experts differ by pyramid level, not by size.'
    if verdict == NOT:
        return 'No: nothing shows that its experts differ by size, or by pyramid level.'
    return 'Not known: these data are insufficient.'


def _layer_sentence(layer: dict) -> str:
    verdict = layer['verdict']
    if verdict == UNDETERMINED:
        return f'Undetermined: {_why_undetermined(layer)}.'
    begin = verdict.capitalize()
    random, swap = _random_words(layer), _swap_words(layer)
    if verdict in (SIZE, SORTED):
        return f'{begin}: the gate sorts by size beyond the level ({_sorting_words(layer)}); {random}; {swap}.'
    if verdict == NOT_BY_SIZE:
        if layer_sorts(layer):
            return f'{begin}: {swap}; the gate sorts by size beyond the level ({_sorting_words(layer)}), but {random}.'
        return f'{begin}: {swap}; {_not_shown(layer)}.'
    if verdict == SCALE:
        scale = _numbers(layer.get('mi_bits'), layer.get('mi_cramers_v'), layer.get('mi_p_value'))
        return (
            f'{begin}: images of different scale go to different experts (I(E;S) = {scale}); {_not_shown(layer)}; '
            f'{swap}.'
        )
    level = _numbers(layer.get('level_mi_bits'), None, layer.get('level_p_value'))
    if verdict == LEVEL:
        return f'{begin}: the choice of expert follows the level (I(E;level) = {level}); {_not_shown(layer)}; {swap}.'
    of_level = ''
    if layer.get('levels') and layer.get('unit') != QUERY:
        of_level = f'; that it depends on the level was not shown (I(E;level) = {level})'
    return f'{begin}: {_not_shown(layer)}{of_level}; {swap}.'


def layer_sorts(layer: dict) -> bool:
    """Whether the gate sorts by size beyond the level in every unit that could be measured."""
    found = [unit.get('sorts') for _, unit in _units(layer)]
    return bool(found) and all(sorts is True for sorts in found)


def beyond_random(layer: dict) -> bool | None:
    """Whether the trained gate sorts more than random gates do; None where that was not measured."""
    quantile = (layer.get('random_gates') or {}).get('quantile')
    return None if quantile is None else quantile > BEYOND


def _units(layer: dict) -> list[tuple[str, dict]]:
    """The units that were measured, the main one first."""
    main = layer.get('main_unit') or 'detection'
    names = [main, *(name for name in ('detection', 'training') if name != main)]
    units = layer.get('units') or {}
    return [(name, units[name]) for name in names if units.get(name) and not units[name].get('unavailable')]


def _doubt(layer: dict) -> str:
    """Why sorting is not specialisation yet, in plain words."""
    if beyond_random(layer) is False:
        return 'but an untrained gate sorts them as well'
    if layer.get('swap') is None:
        return 'but whether the detector needs that was not tested'
    return 'but no loss was seen when images exchanged their experts'


def _losses(layer: dict) -> list[str]:
    """Sizes of COCO's that the swap costs average precision, the largest loss first."""
    swap = layer.get('swap') or {}
    names = [name for name in swap.get('sizes_that_lose') or [] if name in COCO_SIZES]
    return sorted(names, key=lambda name: swap[name]['difference'])


def _for_which_sizes(layer: dict) -> str:
    lost = [COCO_SIZES[name] for name in _losses(layer)]
    if not lost:
        return ''
    return f', most of all for {lost[0]}' if len(lost) > 1 else f', for {lost[0]}'


def _numbers(bits: float | None, effect: float | None, p_value: float | None, adjusted: bool = False) -> str:
    parts = ['unknown' if bits is None else f'{bits:.3f} bits'.replace('-', MINUS)]
    if effect is not None:
        parts.append(f'V = {effect:.2f}')
    if p_value is not None:
        parts.append(f'p = {p_value:.2g}' + (' (Holm)' if adjusted else ''))
    return ', '.join(parts)


def _sorting_words(layer: dict) -> str:
    """I(E; relative size | level) of the layer, or of COCO's bins where relative size was not measured."""
    relative = layer.get('relative_size')
    if relative is None:
        p_value = layer.get('p_value_holm')
        found = _numbers(layer.get('mi_given_level_bits'), layer.get('cramers_v_given_level'), p_value, True)
        return f'I(E;S | level) = {found}'
    found = _numbers(relative.get('mi_bits'), relative.get('cramers_v'), relative.get('p_value_holm'), True)
    return f'I(E;relative size | level) = {found}'


def _not_shown(layer: dict) -> str:
    """Says that sorting beyond the level was not shown, and in which unit for what reason."""
    if not layer.get('levels'):
        return 'beyond the level nothing can be said, because the objects of this detector have none'
    for number, (name, unit) in enumerate(_units(layer)):
        if unit.get('sorts') is True:
            continue
        relative = unit.get('relative_size')
        p_value, effect, bits = (
            (unit.get('p_value'), unit.get('cramers_v_given_level'), unit.get('mi_given_level_bits'))
            if relative is None
            else (relative.get('p_value'), relative.get('cramers_v'), relative.get('mi_bits'))
        )
        words = _sorting_words(layer) if number == 0 else _numbers(bits, effect, p_value)
        if number == 0 and relative is not None:
            p_value = (layer.get('relative_size') or {}).get('p_value_holm')
        elif number == 0:
            p_value = layer.get('p_value_holm')
        where = '' if number == 0 else f' in the {name} unit'
        if p_value is None:
            reason = unit.get('p_value_reason') or (relative or {}).get('p_value_reason') or 'no p-value'
            return f'whether the gate sorts by size beyond the level{where} is unknown: {reason}'
        if p_value <= ALPHA and effect is not None and effect < MIN_CRAMERS_V:
            little = f'{words}; V below {MIN_CRAMERS_V}'
            return f'beyond the level{where} the gate sorts by size too weakly to matter ({little})'
        return f'that the gate sorts by size beyond the level{where} was not shown ({words})'
    random = f'; {_random_words(layer)}' if beyond_random(layer) is False else ''
    return f'the gate sorts by size beyond the level ({_sorting_words(layer)}){random}'


def _random_words(layer: dict) -> str:
    gates = layer.get('random_gates')
    if gates is None:
        return f'random gates were not measured ({layer.get("random_gates_reason") or "no reason recorded"})'
    share, count = gates.get('quantile'), gates.get('count')
    if share is None:
        return 'its place among random gates is unknown'
    place = f'with {100 * share:.3g} % of {count} random gates below it'
    if gates.get('median_bits') is not None:
        place += f' (median {gates["median_bits"]:.3f} bits)'
    return f'more than random gates do, {place}' if beyond_random(layer) else f'random gates sort as well, {place}'


def _swap_words(layer: dict) -> str:
    swap = layer.get('swap')
    if swap is None:
        return f'the swap test was not run ({layer.get("swap_reason") or "no reason recorded"})'
    if swap.get('costs_reason'):
        return f'the swap test cannot tell ({swap["costs_reason"]})'
    if not swap.get('costs'):
        return f'swapping decisions between images has no measurable cost ({_measured("AP", swap)})'
    shown = ', '.join(_measured(name, swap) for name in ('AP', *_losses(layer)[:1]))
    return f'swapping decisions between images costs {shown} points'


def _measured(name: str, swap: dict) -> str:
    measure = swap.get(name)
    if not measure or measure.get('difference') is None:
        return f'{name} unknown'
    text = f'{name} {100 * measure["difference"]:+.1f}'
    if measure.get('interval') is not None:
        low, high = measure['interval']
        text += f' [{100 * low:+.1f}, {100 * high:+.1f}]'
    return text.replace('+0.0', '0.0').replace('-0.0', '0.0').replace('-', MINUS)


def _why_undetermined(layer: dict) -> str:
    """The reason of the verdict, or else the first on record: of relative size, of COCO's bins, of a unit."""
    if layer.get('undetermined_reason'):
        return str(layer['undetermined_reason']).rstrip('.')
    units = layer.get('units') or {}
    places = [layer.get('relative_size') or {}, layer]
    for name in ('detection', 'training'):
        unit = units.get(name) or {}
        places += [unit.get('relative_size') or {}, unit]
    for place in places:
        reason = place.get('p_value_reason') or place.get('unavailable')
        if reason:
            return str(reason).rstrip('.')
    return 'too few images or objects to tell'
