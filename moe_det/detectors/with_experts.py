"""A slot that every detector has: modules named by their paths get experts."""

from __future__ import annotations

import copy
import logging
from typing import Any

from mmdet.registry import MODELS
from mmengine.logging import print_log
from torch import nn

from ..errors import MoEConfigError, unknown_name
from ..layers.moe_ffn import MoEFFN
from ..layers.moe_layer import MoELayer
from ..layers.moe_linear import MoELinear
from ..layers.mu_moe import MuConv2d, MuFFN, MuLinear
from ..routing.experts import ExpertGroup
from .init_weights import InitWeights
from .patterns import nearest, path_matches
from .replacements import REPLACEMENTS, Replacement, conv_of

LAYERS = (MoELayer, MoEFFN, MoELinear, ExpertGroup, MuConv2d, MuFFN, MuLinear)


class WithExperts:
    """Builds any detector of mmdet with experts in chosen modules; the result is the detector itself.

    Lay it over an inherited model, whose other keys stay as they are::

        model = dict(
            type='WithExperts', detector='DINO',
            experts=[dict(modules='decoder.layers.*.ffn', type='MoEFFN', num_experts=4, top_k=1,
                          constraint=dict(type='KLConstraint', weight=0.25))])

    Each entry of ``experts`` has ``modules``, a pattern of module paths or a list of them (``*`` stands for one name or
    a part of it, ``**`` for any number of names), ``type`` and the keys of that type:

    - ``MoEFFN`` replaces the feed-forward networks of transformer layers;
    - ``MoEConv2d`` replaces convolutions, including those inside ConvModules;
    - ``MoELinear`` replaces linear layers of box heads, whose rows are regions of interest;
    - ``MoEBlock`` is added after stages and blocks of backbones, with ``in_channels`` where a module does not tell;
    - ``MuConv2d``, ``MuFFN`` and ``MuLinear`` replace 1x1 convolutions, feed-forward networks and the last layer of an
      image classifier by many factorised experts.

    Checkpoints of the detector without experts load and fill the experts, other than factorised ones. A module that is
    used in several places gets one set of experts.

    Args:
        detector: ``type`` of the detector, or of an image classifier.
        experts: the entries.
        **model: the detector's own keys.

    Raises:
        MoEConfigError: an entry that cannot be built from, a pattern that fits nothing, or a module named twice.
    """

    def __new__(cls, *, detector: str | type, experts: list[dict] | dict, **model) -> Any:
        """Builds the detector and puts the experts in."""
        entries = [experts] if isinstance(experts, dict) else experts
        if not isinstance(entries, (list, tuple)) or not entries:
            raise MoEConfigError(f'model.experts={experts!r}: expected a list of dicts with modules and type')
        if isinstance(detector, str) and MODELS.get(detector) is None:
            raise MoEConfigError(f'model.detector: {unknown_name("detector", detector, _detectors())}')
        built = MODELS.build({'type': detector, **copy.deepcopy(model)})  # DETR's head changes the dict it is given
        put_experts(built, entries)
        return built


def _detectors() -> list[str]:
    return [name for name, kind in MODELS.module_dict.items() if 'mmdet.models.detectors' in kind.__module__]


def put_experts(model: nn.Module, entries: list[dict], where: str = 'model.experts') -> None:
    """Replaces modules of a model in place.

    Args:
        model: the model.
        entries: as ``experts`` of :class:`WithExperts`.
        where: path of the entries in the config, for messages.

    Raises:
        MoEConfigError: as for WithExperts.
    """
    taken: dict[str, int] = {}
    chosen = []
    for number, entry in enumerate(entries):  # all of them before any module changes
        patterns, kind, moe = _read_entry(entry, f'{where}.{number}')
        found: dict[str, nn.Module] = {}
        for pattern in patterns:
            found |= _modules(model, pattern, kind, f'{where}.{number}', told='in_channels' in moe)
        for path in found:
            if path in taken:
                raise MoEConfigError(f'{where}.{number}.modules: {path} has its experts from {where}.{taken[path]}')
            taken[path] = number
        chosen.append((found, kind, moe))
    for found, kind, moe in chosen:
        built: dict[int, nn.Module] = {}  # a module in several places gets one set of experts
        for path, module in found.items():
            if id(module) not in built:
                built[id(module)] = _built(kind, module, path, moe, model)
            parent, _, name = path.rpartition('.')
            setattr(model.get_submodule(parent), name, built[id(module)])
        print_log(f'{kind} at {", ".join(found)}', logger='current', level=logging.INFO)
    if hasattr(model, 'init_weights'):
        detector: Any = model  # whose attributes torch types as tensors and modules
        detector.init_weights = InitWeights(model)


def _built(kind: str, module: nn.Module, path: str, moe: dict, model: nn.Module) -> nn.Module:
    """What replaces a module; an error names its path."""
    try:
        return REPLACEMENTS[kind].build(module, path, moe, model)
    except MoEConfigError as error:
        raise error if str(error).startswith(path) else MoEConfigError(f'{path}: {error}') from None


def _read_entry(entry: object, where: str) -> tuple[list[str], str, dict]:
    """Patterns, name of the type, and the keys of the type."""
    if not isinstance(entry, dict) or not {'modules', 'type'} <= entry.keys():
        raise MoEConfigError(f"{where}={entry!r}: expected a dict with 'modules' and 'type'")
    moe = dict(entry)
    patterns, kind = moe.pop('modules'), moe.pop('type')
    kind = getattr(kind, '__name__', kind)
    if kind not in REPLACEMENTS:
        raise MoEConfigError(f'{where}.type: {unknown_name("type", kind, REPLACEMENTS)}')
    patterns = [patterns] if isinstance(patterns, str) else patterns
    if not isinstance(patterns, (list, tuple)) or not patterns or not all(isinstance(p, str) for p in patterns):
        raise MoEConfigError(f'{where}.modules={patterns!r}: expected a pattern of module paths or a list of them')
    return list(patterns), kind, moe


def _modules(model: nn.Module, pattern: str, kind: str, where: str, told: bool) -> dict[str, nn.Module]:
    """The modules of a kind whose paths fit a pattern, by path; of any kind if the entry tells its channels.

    Raises:
        MoEConfigError: none does.
    """
    replacement = REPLACEMENTS[kind]
    paths = _paths_outside_experts(model)
    fitting = [path for path in paths if path and path_matches(path, pattern)]
    found = {}
    for path in fitting:
        name = conv_of(paths[path]) if kind in ('MoEConv2d', 'MuConv2d') else ''
        path = f'{path}.{name}' if name else path
        if told or replacement.fits(paths[path], path):
            found[path] = paths[path]
    if not found:
        raise MoEConfigError(f'{where}.modules={pattern!r}: {_nothing_found(pattern, kind, fitting, paths)}')
    return found


def _paths_outside_experts(model: nn.Module) -> dict[str, nn.Module]:
    """Every path of every module, those inside layers with experts left out."""
    paths: dict[str, nn.Module] = {}
    inside: tuple[str, ...] = ()
    for path, module in model.named_modules(remove_duplicate=False):
        if path.startswith(inside) and inside:
            continue
        if isinstance(module, LAYERS):
            inside += (f'{path}.',)
        paths[path] = module
    return paths


def _nothing_found(pattern: str, kind: str, fitting: list[str], paths: dict[str, nn.Module]) -> str:
    """Why a pattern names nothing that can be replaced, and what can be."""
    replacement: Replacement = REPLACEMENTS[kind]
    candidates = [path for path, module in paths.items() if path and replacement.fits(module, path)]
    if fitting:
        classes = sorted({type(paths[path]).__name__ for path in fitting})
        reason = f'names {", ".join(classes)}, and {kind} takes {replacement.what}'
    else:
        reason = 'no module has such a path'
    if candidates:
        return f'{reason}; {replacement.what} of this detector, the nearest first: {nearest(pattern, candidates)}'
    others = [
        f'{other.what} ({name}) at {nearest(pattern, places)}'
        for name, other in REPLACEMENTS.items()
        if (places := [path for path, module in paths.items() if path and other.fits(module, path)])
    ]
    return f'{reason}; this detector has no {replacement.what} that can be replaced, but {"; ".join(others)}'
