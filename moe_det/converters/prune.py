"""A checkpoint with fewer experts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy

import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from torch import Tensor, nn

from ..common.checkpoints import check_checkpoint, read_checkpoint
from ..common.console import say
from ..errors import CheckpointError, MoEConfigError
from ..routing.router import Router, find_routers
from ..running.trained_model import load_trained_model
from .files import check_out, read_model_config, save_model
from .importance import expert_importance, most_important
from .places import ExpertPlace, MoEKeys, expert_places, keys_of, moe_keys, place_named, refuse_factors
from .pruning_cost import metrics_table, test_metrics


def prune_experts(
    config: str,
    checkpoint: str,
    out: str,
    *,
    drop: Sequence[str] | None = None,
    keep: int | None = None,
    limit: int | None = None,
    evaluate: bool = True,
    data_root: str | None = None,
    device: str | None = None,
    cfg_options: Sequence[str] | None = None,
) -> list[str]:
    """Drops experts from a checkpoint and shows what that costs; the function behind ``prune_experts.py``.

    An expert's rows of the gate and of the learned noise and its entry of the constraints' state go with it. The
    routing of rows that did not choose it stays as it was, with weights over the experts that are left. Every shard
    keeps equally many copies.

    Args:
        config: the config with experts.
        checkpoint: file or URL of its weights.
        out: the checkpoint to write.
        drop: ``['cls=0', 'cls=3', 'reg=1,2']``.
        keep: number of experts that every layer keeps, of shards the copies of each: those of most importance on the
            validation images.
        limit: only the first N validation images; None takes all.
        evaluate: test before and after.
        data_root: folder that replaces the config's data folder.
        device: for the importance; see :func:`.trained_model.analysis_device`.
        cfg_options: changes of the config.

    Returns:
        The changes of the config that the new checkpoint needs, as ``--cfg-options`` takes them.

    Raises:
        MoEDetError: config, checkpoint or data cannot be used, or the layers of one config dict would keep different
            numbers of experts.
    """
    check_out(out, checkpoint)
    if (drop is None) == (keep is None):
        raise MoEConfigError('give either --drop LAYER=EXPERT ... or --keep N')
    cfg = read_model_config(config, cfg_options, data_root)
    if evaluate:
        for key in ('test_dataloader', 'test_cfg', 'test_evaluator'):
            if cfg.get(key) is None:
                raise MoEConfigError(f'{config}: testing needs {key}, which the config does not have (--no-eval)')
    path = check_checkpoint(checkpoint, 'checkpoint')
    model = load_trained_model(cfg, path, device if keep is not None else 'cpu')
    places = [place for place in expert_places(model) if place.router is not None]
    if not places:
        refuse_factors(model, config)
    kept = _without(places, drop or ()) if keep is None else _most_important(cfg, model, places, keep, limit)
    model.cpu()
    changes = config_changes(cfg.model, places, kept)
    pruned_cfg = deepcopy(cfg)
    pruned_cfg.merge_from_dict({f'model.{key}': value for key, value in changes.items()})
    pruned = prune_model(model, pruned_cfg, kept)
    options = [f'model.{key}={value}' for key, value in changes.items()]
    save_model(out, pruned.state_dict(), pruned_cfg, read_checkpoint(path), path, {'tool': 'prune', 'kept': kept})
    for label, experts in kept.items():
        say(f'{label}: kept the experts {", ".join(map(str, experts))}, renumbered from 0')
    if evaluate:
        say('testing before and after')
        before, after = test_metrics(cfg, path), test_metrics(pruned_cfg, out)
        say(metrics_table(before, after))
    say(f'wrote {out}; it needs the config with these changes:\n    --cfg-options {" ".join(options)}')
    return options


def _without(places: Sequence[ExpertPlace], drop: Sequence[str]) -> dict[str, list[int]]:
    kept = {place.router_label: list(range(place.chosen_by.num_experts)) for place in places}
    for text in drop:
        name, equals, numbers = text.rpartition('=')
        if not (equals and name) or not all(number.isdigit() for number in numbers.split(',')):
            raise MoEConfigError(f'--drop {text}: expected LAYER=EXPERT or LAYER=EXPERT,EXPERT such as cls=0,3')
        place = place_named(name, places, f'--drop {text}', routers=True)[0]
        for number in map(int, numbers.split(',')):
            if number >= place.chosen_by.num_experts:
                raise MoEConfigError(
                    f'--drop {text}: {place.router_label} has the experts 0 to {place.chosen_by.num_experts - 1}'
                )
            if number in kept[place.router_label]:
                kept[place.router_label].remove(number)
    for place in places:
        _check_what_is_left(place.router_label, place.chosen_by, kept[place.router_label])
    return kept


def _check_what_is_left(label: str, router: Router, kept: Sequence[int]) -> None:
    counts = [sum(expert // router.copies == slot for expert in kept) for slot in range(router.slots)]
    if router.slots == 1 and not kept:
        raise MoEConfigError(f'--drop: {label} would keep no expert')
    if min(counts) == 0:
        raise MoEConfigError(f'--drop: {label} would keep no copy of shard {counts.index(0)}')
    if len(set(counts)) > 1:
        listed = ', '.join(f'{count} of shard {slot}' for slot, count in enumerate(counts))
        raise MoEConfigError(f'--drop: {label} would keep {listed} copies; drop equally many of each shard')


def _most_important(
    cfg: Config, model: nn.Module, places: Sequence[ExpertPlace], keep: int, limit: int | None
) -> dict[str, list[int]]:
    """The experts of each router, or the copies of each of its shards, of most importance on the validation images."""
    if keep < 1:
        raise MoEConfigError(f'--keep {keep}: expected at least 1')
    routers = {place.router_label: place.chosen_by for place in places}
    most = max(router.copies for router in routers.values())
    if keep >= most:
        what = 'experts' if all(router.slots == 1 for router in routers.values()) else 'copies of a shard'
        raise MoEConfigError(f'--keep {keep}: the layers have up to {most} {what}, so none would be dropped')
    importance = expert_importance(cfg, model, routers, limit)
    return {label: most_important(importance[label], router.slots, keep) for label, router in routers.items()}


def config_changes(
    model: Mapping, places: Sequence[ExpertPlace], kept: Mapping[str, Sequence[int]]
) -> dict[str, object]:
    """Config keys below ``model`` -> values for the experts that are left.

    Args:
        model: ``model`` of the config.
        places: the model's experts.
        kept: router label -> experts that stay.

    Raises:
        MoEConfigError: layers that one dict of the config builds would differ in their number of experts.
    """
    all_keys = moe_keys(model)
    by_keys: dict[str, tuple[MoEKeys, dict[str, Router]]] = {}
    for place in places:
        found = keys_of(place, all_keys)
        by_keys.setdefault(found.path, (found, {}))[1][place.router_label] = place.chosen_by
    changes: dict[str, object] = {}
    for path, (found, routers) in by_keys.items():
        counts = {label: len(kept[label]) for label in routers}
        router = next(iter(routers.values()))
        if len(set(counts.values())) > 1:
            listed = ', '.join(f'{label} {count}' for label, count in counts.items())
            key = 'copies' if _are_shards(found.keys) else 'num_experts'
            raise MoEConfigError(
                f'model.{path}.{key} is one number for all its layers, they would keep different ones: {listed}; '
                'drop equally many in each'
            )
        count = next(iter(counts.values()))
        if count == router.num_experts:
            continue
        change = _fewer_copies if _are_shards(found.keys) else _fewer_experts
        changes |= {f'{path}.{key}': value for key, value in change(found.keys, router, count).items()}
    if not changes:
        raise MoEConfigError('no expert would be dropped')
    return changes


def _are_shards(keys: Mapping) -> bool:
    return keys.get('placement') == 'shards'


def _fewer_experts(keys: Mapping, router: Router, count: int) -> dict[str, object]:
    changes: dict[str, object] = {'num_experts': count}
    if router.top_k > count:
        changes['top_k'] = count
    if min(router.top_k, count) == count > 1 and not keys.get('soft_mixture', False):
        changes['soft_mixture'] = True
    return changes | _of_the_only_one(keys, count)


def _fewer_copies(keys: Mapping, router: Router, count: int) -> dict[str, object]:
    changes: dict[str, object] = {'copies': count // router.slots}
    if 'num_experts' in keys:  # it follows from the copies; where it is given it has to agree
        changes['num_experts'] = count
    if count == router.slots and keys.get('constraint') is not None:
        changes['constraint'] = None  # nothing is left to choose
    return changes | _of_the_only_one(keys, count // router.slots)


def _of_the_only_one(keys: Mapping, left: int) -> dict[str, object]:
    return {'copies_share': False} if left == 1 and keys.get('copies_share', False) else {}


def prune_model(model: nn.Module, pruned_cfg: Config, kept: Mapping[str, Sequence[int]]) -> nn.Module:
    """Builds the model of the changed config and gives it the weights of the experts that are left.

    Args:
        model: the trained model.
        pruned_cfg: the config after :func:`config_changes`.
        kept: router label -> experts that stay, in ascending order.

    Raises:
        CheckpointError: a tensor of a router does not tell which of its rows belong to which expert.
    """
    pruned = MODELS.build(pruned_cfg.model)
    old, own, state = model.state_dict(), pruned.state_dict(), {}
    places = [place for place in expert_places(model) if place.router is not None]
    for key, value in own.items():
        if any(key.startswith(f'{p.path}.common.') for p in places):
            continue  # found from the experts when the state is loaded
        place = next((p for p in places if key.startswith(f'{p.path}.experts.')), None)
        of_router = next((p for p in places if key.startswith(f'{p.router_path}.')), None)
        if place is not None:
            start = f'{place.path}.experts.'
            number, name = key.removeprefix(start).split('.', 1)
            state[key] = old[f'{start}{kept[place.router_label][int(number)]}.{name}']
        elif of_router is not None and key.endswith('experts_and_k'):
            state[key] = value
        elif of_router is not None:
            left = kept[of_router.router_label]
            state[key] = _rows_kept(key, old[key], value, left, of_router.chosen_by.num_experts)
        else:
            state[key] = old[key]
    pruned.load_state_dict(state, strict=True)
    for label, router in find_routers(pruned).items():
        if len(kept[label]) < model_experts(places, label):
            for constraint in router.constraints.values():
                constraint.after_dropping_experts()
    return pruned.eval()


def model_experts(places: Sequence[ExpertPlace], label: str) -> int:
    """Number of experts of a router before any was dropped."""
    return next(place.chosen_by.num_experts for place in places if place.router_label == label)


def _rows_kept(key: str, old: Tensor, own: Tensor, kept: Sequence[int], experts: int) -> Tensor:
    """A router's tensor for the experts that are left: its only axis of another length is that of the experts."""
    if old.shape == own.shape:
        return old
    axes = [axis for axis in range(old.dim()) if old.dim() == own.dim() and old.shape[axis] != own.shape[axis]]
    if len(axes) != 1 or old.shape[axes[0]] != experts or own.shape[axes[0]] != len(kept):
        raise CheckpointError(
            f'{key}: shape {tuple(old.shape)} with {experts} experts, {tuple(own.shape)} with {len(kept)}: not clear '
            'which values belong to which expert'
        )
    return old.index_select(axes[0], torch.tensor(list(kept), device=old.device))
