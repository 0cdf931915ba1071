"""A checkpoint with experts becomes one of the plain model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Literal

import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from torch import Tensor, nn

from ..common.checkpoints import check_checkpoint, read_checkpoint
from ..common.console import say, warn
from ..errors import CheckpointError, MoEConfigError
from ..routing.intervention import Intervention, intervene
from ..running.trained_model import load_trained_model
from .comparison import largest_difference, network_outputs, random_image, usual_side
from .files import check_out, plain_config, read_model_config, save_model
from .importance import expert_importance, most_important
from .places import ExpertPlace, expert_places, place_named, refuse_factors

AVERAGE: tuple[int, ...] = ()  # in place of the chosen experts


def densify(
    config: str,
    checkpoint: str,
    out: str,
    *,
    expert: Sequence[str] | None = None,
    average: bool = False,
    most_used: bool = False,
    limit: int | None = None,
    data_root: str | None = None,
    device: str | None = None,
    cfg_options: Sequence[str] | None = None,
) -> None:
    """Keeps one expert of every layer, or their average; the function behind ``densify.py``.

    Of a layer of shards one copy of every shard is kept, and the shards are put together again. The checkpoint loads
    into the config without experts with nothing missing or unexpected, and mmdet reads it without this package. It
    computes what the model with experts computes when that expert is forced; this is checked on an image of noise.

    Args:
        config: the config with experts.
        checkpoint: file or URL of its weights.
        out: the checkpoint to write.
        expert: ``['2']`` for all layers, or ``['cls=0', 'reg=2']``; of shards the number of the copy. Layers with one
            expert need no choice.
        average: the mean of the experts' weights instead.
        most_used: the experts of most importance on the validation images instead.
        limit: for ``most_used``, only the first N images; None takes all.
        data_root: folder that replaces the config's data folder, for ``most_used``.
        device: for ``most_used``; see :func:`.trained_model.analysis_device`.
        cfg_options: changes of the config.

    Raises:
        MoEDetError: the config has no experts, a layer or an expert does not exist, or no choice was made; the weights
            do not fit the config, or experts are not a dense part of the model (another width, a skip, a shared expert,
            an added block); the data cannot be used.
    """
    check_out(out, checkpoint)
    if (expert is not None) + average + most_used > 1:
        raise MoEConfigError('--expert, --average and --most-used: give one of them')
    cfg = read_model_config(config, cfg_options, data_root)
    path = check_checkpoint(checkpoint, 'checkpoint')
    model = load_trained_model(cfg, path, device if most_used else 'cpu', require_moe=False)
    refuse_factors(model, config)
    places = expert_places(model)
    if not places:
        raise MoEConfigError(f'{config}: the config has no experts, so the checkpoint is a plain one already')
    chosen = _most_used(cfg, model, places, limit) if most_used else chosen_experts(places, expert, average)
    model.cpu()
    plain_cfg = plain_config(cfg)
    plain = MODELS.build(deepcopy(plain_cfg.model))  # DETR's head changes the dict it is given
    state = dense_state(model.state_dict(), places, chosen, plain.state_dict())
    try:
        plain.load_state_dict(state, strict=True)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()[1:]]
        raise CheckpointError(f'checkpoint {path}: the plain model cannot take the weights: {lines[0]}') from error
    for place in places:
        tensors = len(place.group.experts[0].state_dict())
        say(f'{place.label}: {_in_words(place, chosen[place.label])}, {tensors} tensors')
    dropped = sum(any(key.startswith(f'{p.router_path}.') for p in places if p.router) for key in model.state_dict())
    say(f'gates and constraints: {dropped} tensors left out')
    _compare(cfg, model, plain, places, chosen)
    notes = {'tool': 'densify', 'experts': {name: list(kept) or 'mean' for name, kept in chosen.items()}}
    save_model(out, state, plain_cfg, read_checkpoint(path), path, notes)
    say(f'wrote {out}: {len(state)} tensors of the plain model')


def chosen_experts(
    places: Sequence[ExpertPlace], expert: Sequence[str] | None, average: bool
) -> dict[str, tuple[int, ...]]:
    """The experts of each place, by label: one of every slot; ``AVERAGE`` for their mean.

    Raises:
        MoEConfigError: a layer or an expert does not exist, or a layer with several experts was left out.
    """
    chosen = {p.label: AVERAGE if average else of_copy(p, 0) for p in places if average or p.copies == 1}
    for text in expert or ():
        name, equals, number = text.rpartition('=')
        if not number.isdigit() or (equals and not name):
            raise MoEConfigError(f'--expert {text}: expected a number, or LAYER=NUMBER such as cls=0')
        named = place_named(name, places, f'--expert {text}') if equals else [p for p in places if p.copies > 1]
        for place in named:
            if int(number) >= place.copies:
                what = 'experts' if place.slots == 1 else 'copies of each shard'
                raise MoEConfigError(f'--expert {text}: {place.label} has the {what} 0 to {place.copies - 1}')
            chosen[place.label] = of_copy(place, int(number))
    left = [place.label for place in places if place.label not in chosen]
    if left:
        raise MoEConfigError(
            f'{", ".join(left)}: several experts; choose with --expert N, --expert {left[0].rpartition(".")[2]}=N ..., '
            '--most-used or --average'
        )
    return chosen


def of_copy(place: ExpertPlace, copy: int) -> tuple[int, ...]:
    """The experts that are a copy's number in their slots: expert ``copy`` itself where experts are not shards."""
    return tuple(slot * place.copies + copy for slot in range(place.slots))


def _most_used(
    cfg: Config, model: nn.Module, places: Sequence[ExpertPlace], limit: int | None
) -> dict[str, tuple[int, ...]]:
    routers = {place.router_label: place.router for place in places if place.router is not None}
    importance = expert_importance(cfg, model, routers, limit) if routers else {}
    return {
        place.label: of_copy(place, 0)
        if place.router is None
        else tuple(most_important(importance[place.router_label], place.slots, 1))
        for place in places
    }


def _in_words(place: ExpertPlace, experts: tuple[int, ...]) -> str:
    if place.slots == 1:
        return f'mean of {place.words}' if experts == AVERAGE else f'expert {experts[0]}'
    if experts == AVERAGE:
        return f'mean of the {place.copies} copies of each of {place.slots} shards'
    return ', '.join(f'copy {expert % place.copies} of shard {slot}' for slot, expert in enumerate(experts))


def dense_state(
    state: Mapping[str, Tensor],
    places: Sequence[ExpertPlace],
    chosen: Mapping[str, tuple[int, ...]],
    plain: Mapping[str, Tensor],
) -> dict[str, Tensor]:
    """The state dict of the plain model.

    Args:
        state: of the model with experts.
        places: its experts.
        chosen: label -> one expert of every slot, or ``AVERAGE``.
        plain: state dict of the plain model, whose shapes decide what fits.

    Raises:
        CheckpointError: experts are not a dense part of the model.
    """
    prefixes = tuple(f'{path}.' for place in places for path in (place.path, place.router_path) if path)
    dense = {key: value for key, value in state.items() if not key.startswith(prefixes)}
    for place in places:
        if place.dense_key is None:
            raise CheckpointError(
                f'{place.label}: its experts are blocks that were added to the network, no plain model has them'
            )
        if place.obstacle:
            raise CheckpointError(f'{place.label}: {place.obstacle}, so one expert is not what the plain model has')
        for name in place.group.experts[0].state_dict():
            values = [state[f'{place.path}.experts.{e}.{name}'] for e in range(len(place.group))]
            key = place.dense_key(name)
            if chosen[place.label] == AVERAGE:
                of_slots = [_mean(values[first : first + place.copies]) for first in of_copy(place, 0)]
            else:
                of_slots = [values[expert] for expert in chosen[place.label]]
            if place.group.slices > place.slots:  # the shared expert is the last slice
                of_slots.append(state[f'{place.path}.shared.{name}'])
            value = of_slots[0] if len(of_slots) == 1 else join_shards(of_slots, place.shard_axis(name))
            _check_shape(place, name, key, value, plain)
            dense[key] = value
    return dense


def join_shards(shards: Sequence[Tensor], axis: int | Literal['sum']) -> Tensor:
    """One tensor of every shard -> the tensor of the part that they are slices of, along an axis or as their sum."""
    if not shards[0].dim():
        return shards[0]  # counts of batches
    return torch.stack(list(shards)).sum(0) if axis == 'sum' else torch.cat(list(shards), axis)


def _check_shape(place: ExpertPlace, name: str, key: str, value: Tensor, plain: Mapping[str, Tensor]) -> None:
    if key in plain and plain[key].shape == value.shape:
        return
    dense = f'shape {tuple(plain[key].shape)}' if key in plain else 'no such tensor'
    raise CheckpointError(
        f'{place.label}: an expert has another width than the dense part: {name} has shape {tuple(value.shape)}, {key} '
        f'of the plain model {dense}. Only experts of full width (width=1) can stand alone in a plain model'
    )


def _mean(values: Sequence[Tensor]) -> Tensor:
    if not values[0].is_floating_point():
        return values[0].clone()  # counts of batches
    return torch.stack(list(values)).mean(0)


def _compare(
    cfg: Config,
    model: nn.Module,
    plain: nn.Module,
    places: Sequence[ExpertPlace],
    chosen: Mapping[str, tuple[int, ...]],
) -> None:
    forced: dict[str, Intervention] = {}
    for place in places:
        experts = chosen[place.label]
        if experts == AVERAGE:
            return
        if place.router is None:
            continue
        if forced.setdefault(place.router_label, Intervention(forced=experts)).forced != experts:
            return  # one gate decides for both branches: no routing runs these experts
        if place.scaled_by:
            warn(
                f'{place.label}: with {place.scaled_by} an expert was trained with its output scaled by the gate '
                'probability; alone it counts in full, so the plain model predicts otherwise than the forced expert'
            )
            return
    image = random_image(usual_side(cfg.model))
    with intervene(model, forced):
        ours = network_outputs(model, image)
    difference = largest_difference(network_outputs(plain, image), ours)
    if difference is not None:
        say(f'largest difference of the outputs to the model with the forced experts: {difference:.1e}')
