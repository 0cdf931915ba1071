"""A dense checkpoint becomes one with experts."""

from __future__ import annotations

import copy
import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from torch import Tensor, nn

from ..common.checkpoints import brief, check_checkpoint, read_checkpoint, state_of
from ..common.console import say, warn
from ..common.dense_counterpart import dense_counterpart
from ..errors import CheckpointError, MoEConfigError
from ..layers.settings import MoESettings
from .comparison import largest_difference, network_outputs, random_image, usual_side
from .files import build_model, check_out, quiet_log, read_model_config, save_model
from .places import BLOCK, expert_places, moe_keys

TOLERANCE = 1e-4  # of logits and deltas; rounding alone gives about 1e-6


@dataclass(frozen=True)
class CopyReport:
    """What became of a dense checkpoint's tensors.

    Attributes:
        experts: (layer, its experts in words, dense tensors that became parts of them).
        kept: tensors that stayed as they were, in parts without experts.
        initial: (what, number) of tensors that keep their initial value because the dense model has none of the kind.
        problems: a sentence about everything that did not fit.
    """

    experts: tuple[tuple[str, str, int], ...]
    kept: int
    initial: tuple[tuple[str, int], ...]
    problems: tuple[str, ...]

    def lines(self) -> list[str]:
        """The report as text."""
        lines = [f'{label}: {tensors} tensors copied into {words}' for label, words, tensors in self.experts]
        lines.append(f'parts without experts: {self.kept} tensors taken as they are')
        lines += [f'left at their initial value: {count} tensors of {what}' for what, count in self.initial]
        return lines + [f'did not fit: {problem}' for problem in self.problems]


def upcycle(
    config: str,
    checkpoint: str,
    out: str,
    *,
    noise: float | None = None,
    seed: int = 0,
    allow_missing: bool = False,
    cfg_options: Sequence[str] | None = None,
) -> CopyReport:
    """Makes a checkpoint for a config with experts from one without; the function behind ``upcycle.py``.

    Every expert starts as a copy of the dense part that it replaces (sparse upcycling, arXiv 2212.05055), with noise
    that makes the experts differ. Before the noise (and before ``copy_redraw``) the model computes what the dense one
    computes, because weights of equal experts sum to 1, as do the outputs of a part's shards; this is checked on an
    image of noise.

    Args:
        config: the config with experts.
        checkpoint: file or URL of the dense model.
        out: the checkpoint to write.
        noise: relative standard deviation of the noise; None takes each layer's ``copy_noise``.
        seed: of noise, redrawn channels and gates.
        allow_missing: write the checkpoint even where something did not fit or the outputs differ.
        cfg_options: changes of the config.

    Raises:
        MoEConfigError: the config has no experts, or an argument cannot be used.
        CheckpointError: the checkpoint has experts, does not fit, or the model would not compute what the dense one
            does.
    """
    check_out(out, checkpoint)
    cfg = read_model_config(config, cfg_options)
    if not moe_keys(cfg.model):
        raise MoEConfigError(f'{config}: the config has no experts to fill')
    path = check_checkpoint(checkpoint, 'checkpoint')
    content = read_checkpoint(path)
    dense = state_of(content, path)
    if any(key.endswith('experts_and_k') or re.search(r'\bexperts\.\d+\.', key) for key in dense):
        raise CheckpointError(f'checkpoint {path} has experts already, expected one of a dense model')

    torch.manual_seed(seed)
    model = build_model(cfg.model)
    exact = copy.deepcopy(model)  # the noise depends on the weights that the model was built with
    fill_experts(exact, dense, 0.0, redraw=0.0)
    difference = _difference_to_dense(cfg, dense, exact)
    report = fill_experts(model, dense, noise)
    for line in report.lines():
        say(line)
    problems = list(report.problems)
    if difference is not None:
        say(f'largest difference of the outputs to the dense model, before noise: {difference:.1e}')
        if difference > TOLERANCE:
            problems.append(f'the outputs differ from those of the dense model by {difference:.1e}{_reason(model)}')
    else:
        warn('the outputs were not compared with those of the dense model')
    if problems and not allow_missing:
        raise CheckpointError(
            f'checkpoint {path} does not fit the config {config}: {brief(problems, 2)}; nothing was written '
            '(--allow-missing writes it anyway)'
        )
    notes = {'tool': 'upcycle', 'noise': 'copy_noise' if noise is None else noise, 'seed': seed}
    save_model(out, model.state_dict(), cfg, content, path, notes)
    say(f'wrote {out}')
    return report


def fill_experts(
    model: nn.Module, dense: Mapping[str, Tensor], noise: float | None, redraw: float | None = None
) -> CopyReport:
    """Fills a model with experts from a dense model's weights, in place; what these have not stays as it is.

    Args:
        model: the model.
        dense: the dense model's state dict.
        noise: relative noise, a function of the weights that the model had; None takes each layer's ``copy_noise``.
        redraw: share of channels that is redrawn; None takes each layer's ``copy_redraw``.

    Returns:
        What became of the tensors.
    """
    own = model.state_dict()
    problems = [
        f'{key}: shape {tuple(value.shape)}, the model has {tuple(own[key].shape)}'
        for key, value in dense.items()
        if key in own and own[key].shape != value.shape
    ]
    fitting = {key: value for key, value in dense.items() if key not in own or own[key].shape == value.shape}
    with quiet_log(), _copied_with(model, copy_noise=noise, copy_redraw=redraw):  # the report says more than the log
        missing, unexpected = model.load_state_dict(fitting, strict=False)
    return _report(model, fitting, missing, unexpected, problems)


@contextmanager
def _copied_with(model: nn.Module, **changes: float | None) -> Iterator[None]:
    """Gives every layer of experts other settings meanwhile; None leaves one as it is."""
    given = {key: value for key, value in changes.items() if value is not None}
    layers: list[Any] = [
        module for module in model.modules() if isinstance(getattr(module, 'settings', None), MoESettings)
    ]
    before = [layer.settings for layer in layers]
    for layer in layers:
        layer.settings = dataclasses.replace(layer.settings, **given)
    try:
        yield
    finally:
        for layer, settings in zip(layers, before, strict=True):
            layer.settings = settings


def _report(
    model: nn.Module, dense: Mapping, missing: Sequence[str], unexpected: Sequence[str], problems: list[str]
) -> CopyReport:
    places = expert_places(model)
    experts = []
    copied: set[str] = set()
    for filled in places:
        copy = filled.group.dense_copy
        if copy is not None:
            experts.append((filled.label, filled.words, len(copy.copied)))
            problems += copy.problems
            copied.update(copy.copied)
    problems += [f'{key}: the model has no such tensor' for key in unexpected]
    initial = {'gates and constraints': 0, 'shared experts': 0, 'added blocks': 0}
    unfilled: dict[str, int] = {}
    for key in missing:
        place = next((p for p in places if key.startswith(f'{p.path}.')), None)
        if any(p.router_path and key.startswith(f'{p.router_path}.') for p in places):
            initial['gates and constraints'] += 1
        elif key.endswith('num_batches_tracked'):
            continue
        elif place is not None and key.startswith(f'{place.path}.shared.'):
            initial['shared experts'] += 1
        elif place is not None and place.kind == BLOCK:
            initial['added blocks'] += 1
        else:
            name = place.label if place is not None else key
            unfilled[name] = unfilled.get(name, 0) + 1
    problems += [f'{name}: {count} tensors are not in the checkpoint' for name, count in unfilled.items()]
    own = model.state_dict()
    kept = sum(key in own and key not in copied for key in dense)
    left = tuple((what, count) for what, count in initial.items() if count)
    return CopyReport(tuple(experts), kept, left, tuple(problems))


def _difference_to_dense(cfg: Config, dense: Mapping[str, Tensor], model: nn.Module) -> float | None:
    plain = MODELS.build(dense_counterpart(cfg.model)[0])
    own = plain.state_dict()
    fitting = {key: value for key, value in dense.items() if key in own and own[key].shape == value.shape}
    plain.load_state_dict(fitting, strict=False)
    image = random_image(usual_side(cfg.model))
    return largest_difference(network_outputs(model, image), network_outputs(plain, image))


def _reason(model: nn.Module) -> str:
    for place in expert_places(model):
        if place.obstacle:
            return f' ({place.label}: {place.obstacle})'
        if place.scaled_by:
            way_out = "; weighting='straight_through' counts it in full" if place.scaled_by == 'top_k=1' else ''
            scaled = f"with {place.scaled_by} an expert's output is scaled with its gate probability"
            return f' ({place.label}: {scaled}{way_out})'
        if place.router is not None and place.router.unit == 'patch' and place.slots > 1:
            return f" ({place.label}: with unit='patch' a norm takes its statistics from a patch and its surroundings)"
        if place.router is not None and place.router.unit == 'patch':
            return f" ({place.label}: with unit='patch' an expert sees one pixel around its patch, a tower more)"
    return ''
