"""What a config costs, compared with the same model without experts: the function behind moe_cost.py."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from mmengine.config import Config
from mmengine.registry import init_default_scope

from ..common.console import say, write_result
from ..common.dense_counterpart import dense_counterpart
from ..errors import MoEConfigError
from ..running.launch import load_config
from .part_costs import WHOLE, ModelCost, model_cost


def moe_cost(
    config: str,
    shape: Sequence[int] | None = None,
    cfg_options: list[str] | None = None,
    json_file: str | None = None,
) -> None:
    """Prints what a config costs; the function behind ``moe_cost.py``.

    Args:
        config: a config file, or ``mmdet::...`` for one of mmdet's own.
        shape: height and width of the image; by default 800 and 1280 for detectors, the images' own for classifiers.
        cfg_options: changes of the config.
        json_file: also write all numbers to this file.

    Raises:
        MoEConfigError: the config has no model, the shape does not suit it, or the file cannot be written.
    """
    cfg = load_config(config, cfg_options)
    if cfg.get('model') is None:
        raise MoEConfigError(f'{config}: the config has no model')
    init_default_scope(cfg.default_scope)
    size = _usual_shape(cfg.model) if shape is None else (int(shape[0]), int(shape[1]))
    try:
        cost = model_cost(cfg.model, size)
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise MoEConfigError(
            f'--shape {size[0]} {size[1]}: the model of {config} cannot run an image of this size: {reason}'
        ) from error
    dense, note = _dense_cost(cfg, size, cost)
    content = {'config': str(config), 'image': list(size), **_as_dict(cost), 'dense': dense and _as_dict(dense)}
    content['note'] = note
    write_result('--json', json_file, content)
    say(cost_markdown(cost, dense, note))


def _usual_shape(model_cfg: Mapping) -> tuple[int, int]:
    """COCO's image for a detector; for a classifier the side that its networks are made for, else CIFAR's."""
    if any(model_cfg.get(key) is not None for key in ('bbox_head', 'roi_head', 'detectors')):
        return 800, 1280
    side = (model_cfg.get('expert') or {}).get('image_size', 32)
    return side, side


def _dense_cost(cfg: Config, shape: tuple[int, int], cost: ModelCost) -> tuple[ModelCost | None, str]:
    plain, changes = dense_counterpart(cfg.model)
    if not changes:
        return None, 'no experts of this package in the config' if cost.experts == 'dense' else _unknown(cost)
    dense = model_cost(plain, shape)
    if dense.experts != 'dense':
        return None, _unknown(dense)
    return dense, f'dense: {"; ".join(changes)}'


def _unknown(cost: ModelCost) -> str:
    return f'no dense counterpart: experts of classes that are not known here ({cost.experts})'


def _as_dict(cost: ModelCost) -> dict:
    parts = {name: dataclasses.asdict(part) for name, part in cost.parts.items()}
    return {'experts': cost.experts, 'input': list(cost.size), 'parts': parts}


def cost_markdown(cost: ModelCost, dense: ModelCost | None, note: str) -> str:
    """The costs as a Markdown table for one image; the units suit the size of the model."""
    whole = cost.parts[WHOLE]
    count, multiply = _unit(whole.params, 'kMG'), _unit(whole.macs or 0, 'kMG')
    heads = ['part', f'params {count[0]}', f'active {count[0]}', f'{multiply[0]}MAC all experts']
    heads += [f'{multiply[0]}MAC active']
    if dense is not None:
        heads += [f'dense params {count[0]}', f'dense {multiply[0]}MAC', 'active / dense MAC']
    rows = [heads]
    for name, part in cost.parts.items():
        row = [name, _scaled(part.params, count), _scaled(part.active_params, count)]
        row += [_scaled(part.macs, multiply), _scaled(part.active_macs, multiply)]
        if dense is not None:
            plain = dense.parts.get(name)
            ratio = '–'
            if plain and plain.active_macs and part.active_macs is not None:
                ratio = f'{part.active_macs / plain.active_macs:.3f}'
            row += [_scaled(plain.params if plain else None, count)]
            row += [_scaled(plain.active_macs if plain else None, multiply), ratio]
        rows.append(row)
    widths = [max(len(row[i]) for row in rows) for i in range(len(heads))]
    lines = ['| ' + ' | '.join(c.ljust(width) for c, width in zip(row, widths, strict=True)) + ' |' for row in rows]
    lines.insert(1, '|' + '|'.join('-' * (width + 2) for width in widths) + '|')
    about = f'{cost.experts}; one image, network input {cost.size[0]}x{cost.size[1]} (height x width)'
    return '\n'.join([about, note, '', *lines, '', _EXPLANATION])


_EXPLANATION = (
    'active: what one image uses. Every routing row runs K experts of one size, whichever the gate picks, so active '
    'counts\ndo not depend on weights or data. MAC: multiply-adds of convolutions and matrix products.'
)


def _unit(value: int, letters: str) -> tuple[str, int]:
    """Letter and factor of the largest unit of which ``value`` has at least one."""
    power = max([0, *(i for i in range(len(letters)) if value >= 1000 ** (i + 1))])
    return letters[power], 1000 ** (power + 1)


def _scaled(value: int | None, unit: tuple[str, int]) -> str:
    return '–' if value is None else f'{value / unit[1]:.2f}'
