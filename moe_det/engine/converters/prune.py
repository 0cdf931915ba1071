"""A checkpoint with fewer experts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy

import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from torch import Tensor, nn
from tqdm import tqdm

from ...errors import CheckpointError, MoEConfigError
from ...routing.records import UsageRecorder
from ...routing.router import Router, find_routers
from ..checkpoints import check_checkpoint
from ..console import say
from ..trained_model import load_trained_model, read_checkpoint, test_batches
from .files import check_out, read_model_config, save_model
from .places import ExpertPlace, MoEKeys, expert_places, keys_of, moe_keys, place_named
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

    With an expert go its row of the gate and of the learned noise and its entry of the constraints' state. The
    routing of rows that did not choose it stays as it was, with weights over the experts that are left.

    Args:
        config: the config with experts.
        checkpoint: file or URL of its weights.
        out: the checkpoint to write.
        drop: ``['cls=0', 'cls=3', 'reg=1,2']``.
        keep: number of experts that every layer keeps: those of most importance on the validation images.
        limit: the first so many validation images; None takes all.
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
    kept = _without(places, drop) if keep is None else _most_important(cfg, model, places, keep, limit)
    model.cpu()
    changes = config_changes(cfg.model, places, kept)
    pruned_cfg = deepcopy(cfg)
    pruned_cfg.merge_from_dict({f'model.{key}': value for key, value in changes.items()})
    pruned = prune_model(model, pruned_cfg, kept)
    options = [f'model.{key}={value}' for key, value in changes.items()]
    save_model(out, pruned.state_dict(), pruned_cfg, read_checkpoint(path), path, {'tool': 'prune', 'kept': kept})
    for label, experts in kept.items():
        say(f'{label}: kept the experts {", ".join(map(str, experts))}, numbered anew from 0')
    if evaluate:
        say('testing before and after')
        before, after = test_metrics(cfg, path), test_metrics(pruned_cfg, out)
        say(metrics_table(before, after))
    say(f'wrote {out}; it needs the config with these changes:\n    --cfg-options {" ".join(options)}')
    return options


def _without(places: Sequence[ExpertPlace], drop: Sequence[str]) -> dict[str, list[int]]:
    kept = {place.router_label: list(range(place.router.num_experts)) for place in places}
    for text in drop:
        name, equals, numbers = text.rpartition('=')
        if not (equals and name) or not all(number.isdigit() for number in numbers.split(',')):
            raise MoEConfigError(f'--drop {text}: expected LAYER=EXPERT or LAYER=EXPERT,EXPERT such as cls=0,3')
        place = place_named(name, places, f'--drop {text}', routers=True)[0]
        for number in map(int, numbers.split(',')):
            if number >= place.router.num_experts:
                raise MoEConfigError(
                    f'--drop {text}: {place.router_label} has the experts 0 to {place.router.num_experts - 1}'
                )
            if number in kept[place.router_label]:
                kept[place.router_label].remove(number)
        if not kept[place.router_label]:
            raise MoEConfigError(f'--drop {text}: {place.router_label} would keep no expert')
    return kept


def _most_important(
    cfg: Config, model: nn.Module, places: Sequence[ExpertPlace], keep: int, limit: int | None
) -> dict[str, list[int]]:
    """The experts of each router with the largest importance (sum of weights) on the validation images."""
    if keep < 1:
        raise MoEConfigError(f'--keep {keep}: expected at least 1')
    most = max(place.router.num_experts for place in places)
    if keep >= most:
        raise MoEConfigError(f'--keep {keep}: the layers have up to {most} experts, so none would be dropped')
    seen = deepcopy(cfg)
    if cfg.get('val_dataloader') is not None:
        seen.test_dataloader = cfg.val_dataloader
    with UsageRecorder(model) as recorder, torch.no_grad():
        for _, batch in tqdm(test_batches(seen, limit), desc='importance', unit='batch', disable=None):
            model.test_step(batch)
    kept = {}
    for label, router in {place.router_label: place.router for place in places}.items():
        if label not in recorder.usage:
            raise MoEConfigError(f'{label}: no validation image reached the layer; name its experts with --drop')
        importance = recorder.usage[label].importance[0].cpu()
        order = torch.argsort(importance, descending=True, stable=True)
        kept[label] = sorted(order[: min(keep, router.num_experts)].tolist())
        shares = ', '.join(f'{e}: {x:.1%}' for e, x in enumerate((importance / importance.sum()).tolist()))
        say(f'{label}: importance by expert {shares}')
    return kept


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
        by_keys.setdefault(found.path, (found, {}))[1][place.router_label] = place.router
    changes: dict[str, object] = {}
    for path, (found, routers) in by_keys.items():
        counts = {label: len(kept[label]) for label in routers}
        if len(set(counts.values())) > 1:
            listed = ', '.join(f'{label} {count}' for label, count in counts.items())
            raise MoEConfigError(
                f'model.{path}.num_experts is one number for all its layers, they would keep different ones: {listed}; '
                'drop equally many in each'
            )
        count = next(iter(counts.values()))
        router = next(iter(routers.values()))
        if count == router.num_experts:
            continue
        changes[f'{path}.num_experts'] = count
        if router.top_k > count:
            changes[f'{path}.top_k'] = count
        if min(router.top_k, count) == count > 1 and not found.keys.get('soft_mixture', False):
            changes[f'{path}.soft_mixture'] = True
    if not changes:
        raise MoEConfigError('no expert would be dropped')
    return changes


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
        place = next((p for p in places if key.startswith(f'{p.path}.experts.')), None)
        router = next((p for p in places if key.startswith(f'{p.router_path}.')), None)
        if place is not None:
            start = f'{place.path}.experts.'
            number, name = key.removeprefix(start).split('.', 1)
            state[key] = old[f'{start}{kept[place.router_label][int(number)]}.{name}']
        elif router is not None and key.endswith('experts_and_k'):
            state[key] = value
        elif router is not None:
            state[key] = _rows_kept(key, old[key], value, kept[router.router_label], router.router.num_experts)
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
    return next(place.router.num_experts for place in places if place.router_label == label)


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
