"""A checkpoint with experts becomes one of the plain model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from torch import Tensor, nn

from ...errors import CheckpointError, MoEConfigError
from ...routing.intervention import Intervention, intervene
from ..checkpoints import check_checkpoint
from ..console import say, warn
from ..trained_model import load_trained_model, read_checkpoint
from .comparison import largest_difference, network_outputs, random_image, usual_side
from .files import check_out, plain_config, read_model_config, save_model
from .places import ExpertPlace, expert_places, place_named

AVERAGE = -1  # in place of an expert's number


def densify(
    config: str,
    checkpoint: str,
    out: str,
    *,
    expert: Sequence[str] | None = None,
    average: bool = False,
    cfg_options: Sequence[str] | None = None,
) -> None:
    """Keeps one expert of every layer, or their average; the function behind ``densify.py``.

    The checkpoint loads into the config without experts with nothing missing or unexpected, and mmdet reads it without
    this package. It computes what the model with experts computes when that expert is forced; this is checked on an
    image of noise.

    Args:
        config: the config with experts.
        checkpoint: file or URL of its weights.
        out: the checkpoint to write.
        expert: ``['2']`` for all layers, or ``['cls=0', 'reg=2']``; layers with one expert need no choice.
        average: the mean of the experts' weights instead.
        cfg_options: changes of the config.

    Raises:
        MoEConfigError: the config has no experts, a layer or an expert does not exist, or no choice was made.
        CheckpointError: the weights do not fit the config, or experts are no dense part of the model (another width,
            a skip, a shared expert, an added block).
    """
    check_out(out, checkpoint)
    cfg = read_model_config(config, cfg_options)
    path = check_checkpoint(checkpoint, 'checkpoint')
    model = load_trained_model(cfg, path, 'cpu', require_moe=False)
    places = expert_places(model)
    if not places:
        raise MoEConfigError(f'{config}: the config has no experts, so the checkpoint is a plain one already')
    chosen = chosen_experts(places, expert, average)
    plain_cfg = plain_config(cfg)
    plain = MODELS.build(plain_cfg.model)
    state = dense_state(model.state_dict(), places, chosen, plain.state_dict())
    try:
        plain.load_state_dict(state, strict=True)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()[1:]]
        raise CheckpointError(f'checkpoint {path}: the plain model cannot take the weights: {lines[0]}') from error
    for place in places:
        expert_name = f'expert {chosen[place.label]}'
        what = f'mean of {len(place.group)} experts' if chosen[place.label] == AVERAGE else expert_name
        say(f'{place.label}: {what}, {len(place.group.experts[0].state_dict())} tensors')
    dropped = sum(any(key.startswith(f'{p.router_path}.') for p in places if p.router) for key in model.state_dict())
    say(f'gates and constraints: {dropped} tensors left out')
    _compare(cfg, model, plain, places, chosen)
    notes = {'tool': 'densify', 'experts': {name: 'mean' if e == AVERAGE else e for name, e in chosen.items()}}
    save_model(out, state, plain_cfg, read_checkpoint(path), path, notes)
    say(f'wrote {out}: {len(state)} tensors of the plain model')


def chosen_experts(places: Sequence[ExpertPlace], expert: Sequence[str] | None, average: bool) -> dict[str, int]:
    """The expert of each place, by label; ``AVERAGE`` for their mean.

    Raises:
        MoEConfigError: a layer or an expert does not exist, or a layer with several experts was left out.
    """
    if expert and average:
        raise MoEConfigError('--expert and --average: give one of them')
    chosen = {place.label: AVERAGE if average else 0 for place in places if average or len(place.group) == 1}
    for text in expert or ():
        name, equals, number = text.rpartition('=')
        if not number.isdigit() or (equals and not name):
            raise MoEConfigError(f'--expert {text}: expected a number, or LAYER=NUMBER such as cls=0')
        named = place_named(name, places, f'--expert {text}') if equals else [p for p in places if len(p.group) > 1]
        for place in named:
            if int(number) >= len(place.group):
                raise MoEConfigError(f'--expert {text}: {place.label} has the experts 0 to {len(place.group) - 1}')
            chosen[place.label] = int(number)
    left = [place.label for place in places if place.label not in chosen]
    if left:
        raise MoEConfigError(
            f'{", ".join(left)}: several experts; choose with --expert N, --expert {left[0].rpartition(".")[2]}=N ..., '
            'or --average'
        )
    return chosen


def dense_state(
    state: Mapping[str, Tensor],
    places: Sequence[ExpertPlace],
    chosen: Mapping[str, int],
    plain: Mapping[str, Tensor],
) -> dict[str, Tensor]:
    """The state dict of the plain model.

    Args:
        state: of the model with experts.
        places: its experts.
        chosen: label -> expert, or ``AVERAGE``.
        plain: state dict of the plain model, whose shapes decide what fits.

    Raises:
        CheckpointError: experts are no dense part of the model.
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
            _check_shape(place, name, key, values[0], plain)
            dense[key] = _mean(values) if chosen[place.label] == AVERAGE else values[chosen[place.label]]
    return dense


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
    cfg: Config, model: nn.Module, plain: nn.Module, places: Sequence[ExpertPlace], chosen: Mapping[str, int]
) -> None:
    forced: dict[str, Intervention] = {}
    for place in places:
        expert = chosen[place.label]
        if expert == AVERAGE:
            return
        if place.router is None:
            continue
        if forced.setdefault(place.router_label, Intervention(forced=expert)).forced != expert:
            return  # one gate decides for both branches: no routing runs these two experts
        if not place.router.sums_to_one:
            warn(
                f'{place.label}: with top_k=1 an expert was trained with its output scaled by the gate probability; '
                'alone it counts in full, so the plain model predicts otherwise than the forced expert'
            )
            return
    image = random_image(usual_side(cfg.model))
    with intervene(model, forced):
        ours = network_outputs(model, image)
    difference = largest_difference(network_outputs(plain, image), ours)
    if difference is not None:
        say(f'largest difference of the outputs to the model with the forced experts: {difference:.1e}')
