"""Where a model has experts: in its modules, in its weights and in its config."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from ..common.dense_counterpart import type_name
from ..detectors.patterns import path_matches
from ..detectors.replacements import BLOCK_NAME
from ..errors import MoEConfigError, unknown_name
from ..layers.dense_start import ShardAxis
from ..layers.moe_block import MoEBlock
from ..layers.moe_conv import MoEConv2d
from ..layers.moe_ffn import MoEFFN, ffn_shard_axis
from ..layers.moe_layer import MoELayer
from ..layers.moe_linear import MoELinear
from ..layers.multilinear import MultilinearExperts
from ..models.dense_names import shard_axis
from ..models.moe_retina_head import MoERetinaHead
from ..models.resnet_stages import MoEStage
from ..routing.experts import ExpertGroup
from ..routing.router import Router

HEAD, STAGE, CONV, FFN, BLOCK, OTHER = 'head', 'stage', 'convolution', 'FFN', 'block', 'other'
LINEAR = 'linear layer'
OF_TYPE = {'MoEConv2d': CONV, 'MoEFFN': FFN, 'MoELinear': LINEAR, 'MoEBlock': BLOCK}  # entries of WithExperts


@dataclass(frozen=True)
class ExpertPlace:
    """One group of experts of a model.

    Attributes:
        label: name in messages and on the command line, such as ``bbox_head.cls``.
        kind: what the experts are.
        group: the experts.
        path: their prefix in the state dict.
        router: what decides for them; None with one expert.
        router_path: its prefix in the state dict; ``''`` without one.
        dense_key: name of an expert's tensor -> key of the tensor in the model without experts; None where that model
            has nothing in this place.
        obstacle: why one expert alone is not the dense part that the experts replace; ``''`` if it is.
        shard_axis: how tensors of shards make up the dense part's, see :func:`~moe_det.models.dense_names.shard_axis`.
    """

    label: str
    kind: str
    group: ExpertGroup
    path: str
    router: Router | None
    router_path: str
    dense_key: Callable[[str], str] | None
    obstacle: str = ''
    shard_axis: ShardAxis = shard_axis

    @property
    def router_label(self) -> str:
        """The name that :func:`~moe_det.routing.router.find_routers` gives the router."""
        return self.router_path.removesuffix('.router').replace('.routers.', '.')

    @property
    def chosen_by(self) -> Router:
        """The router, of experts that have one."""
        assert self.router is not None
        return self.router

    @property
    def scaled_by(self) -> str:
        """The key for which the weights of a row sum to less than 1; ``''`` where they sum to 1."""
        if self.router is None or self.router.sums_to_one:
            return ''
        if self.router.rows_per_expert is not None:
            return f'rows_per_expert={self.router.rows_per_expert}'
        return 'top_k=1' if self.router.top_k == 1 else f'weighting={self.router.weighting!r}'

    @property
    def slots(self) -> int:
        """Number of shards, of each of which every row runs one copy; 1 where experts are not shards."""
        return self.group.slots

    @property
    def copies(self) -> int:
        """Number of alternatives in a slot: the copies of a shard, or all experts."""
        return len(self.group) // self.slots

    @property
    def words(self) -> str:
        """``'3 experts'`` or ``'2 shards of 4 copies'``."""
        return f'{len(self.group)} experts' if self.slots == 1 else f'{self.slots} shards of {self.copies} copies'


def expert_places(model: nn.Module) -> list[ExpertPlace]:
    """All groups of experts of a model, in the order of its modules."""
    places: list[ExpertPlace] = []
    for path, module in model.named_modules():
        if isinstance(module, MoERetinaHead):
            places += [_in_head(module, path, branch) for branch in module.branch_experts]
        elif isinstance(module, ExpertGroup) and not any(place.group is module for place in places):
            places.append(_in_layer(model, path, module))
    return places


def refuse_factors(model: nn.Module, config: str) -> None:
    """Raises MoEConfigError for experts that are slices of shared factors, of which none can be taken out."""
    for path, module in model.named_modules():
        if isinstance(module, MultilinearExperts):
            raise MoEConfigError(
                f'{config}: {path} are factorised experts, slices of shared factors: none of them can be taken out'
            )


def _shared(group: ExpertGroup) -> str:
    added = group.shared is not None and group.slices == 1
    return 'a shared expert adds to what the chosen ones give' if added else ''


def _in_head(head: MoERetinaHead, path: str, branch: str) -> ExpertPlace:
    dot = f'{path}.' if path else ''
    name = 'both' if head.moe.shared_gate else branch
    router = head.routers[name] if name in head.routers else None
    group = head.branch_experts[branch]
    return ExpertPlace(
        label=f'{dot}{branch}',
        kind=HEAD,
        group=group,
        path=f'{dot}branch_experts.{branch}',
        router=router,
        router_path=f'{dot}routers.{name}' if router is not None else '',
        dense_key=lambda name: dot + head.dense_name(branch, name),
        obstacle=_shared(group),
    )


def _in_layer(model: nn.Module, path: str, group: ExpertGroup) -> ExpertPlace:
    owner_path = path.rpartition('.')[0]
    owner = model.get_submodule(owner_path)
    dot = f'{owner_path}.' if owner_path else ''
    router = getattr(owner, 'router', None)
    kind, obstacle = OTHER, _shared(group)
    dense_path = f'{path}.experts.0.'  # a mixture of classifiers without experts keeps the first one
    if isinstance(owner, MoEStage):
        kind = STAGE
        obstacle = obstacle or ('residual=True adds a skip around the stage' if owner.skip is not None else '')
    elif isinstance(owner, MoEConv2d):
        kind = CONV
    elif isinstance(owner, MoEFFN):
        kind = FFN
    elif isinstance(owner, MoELinear):
        kind = LINEAR
    elif isinstance(owner, MoELayer) and isinstance(model.get_submodule(owner_path.rpartition('.')[0]), MoEBlock):
        kind = BLOCK
    if kind in (STAGE, CONV, FFN, LINEAR):
        dense_path = dot
    return ExpertPlace(
        label=owner_path or 'model',
        kind=kind,
        group=group,
        path=path,
        router=router,
        router_path=f'{dot}router' if router is not None else '',
        dense_key=None if kind == BLOCK else lambda name: dense_path + name,
        obstacle=obstacle,
        shard_axis=ffn_shard_axis if kind == FFN else shard_axis,
    )


def place_named(name: str, places: Sequence[ExpertPlace], where: str, *, routers: bool = False) -> list[ExpertPlace]:
    """The places that a name of the command line means: a label, or its end where that is unique (``cls``).

    Args:
        name: what the user wrote.
        places: of the model.
        where: the argument, for the message.
        routers: names are those of routers; the places of one router belong together.

    Raises:
        MoEConfigError: no place has that name, or several have.
    """

    def label(place: ExpertPlace) -> str:
        return place.router_label if routers else place.label

    labels = [found for found in dict.fromkeys(label(place) for place in places) if found]
    if not labels:
        raise MoEConfigError(f'{where}: the model has no layer whose experts could be changed')
    found = [one for one in labels if one == name] or [one for one in labels if one.endswith(f'.{name}')]
    if len(found) > 1:
        raise MoEConfigError(f'{where}: {name!r} may be {" or ".join(found)}; write it in full')
    if not found:
        raise MoEConfigError(f'{where}: {unknown_name("layer", name, labels)}')
    return [place for place in places if label(place) == found[0]]


# -- configs -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class MoEKeys:
    """The dict of a model's config that holds the keys of MoESettings.

    Attributes:
        path: dotted path below ``model``, such as ``bbox_head.moe``.
        owner: path of the part that holds it, such as ``bbox_head``.
        kinds: what it builds.
        keys: the dict itself.
        modules: patterns of the paths below ``owner`` of what it builds; None for all of the owner.
    """

    path: str
    owner: str
    kinds: tuple[str, ...]
    keys: dict
    modules: tuple[str, ...] | None = None

    def builds(self, place: ExpertPlace) -> bool:
        """Whether the place may come from this dict."""
        dot = f'{self.owner}.' if self.owner else ''
        if place.kind not in self.kinds or not f'{place.path}.'.startswith(dot):
            return False
        path = place.label.removeprefix(dot).removesuffix(f'.{BLOCK_NAME}.moe')
        paths = (path, path.removesuffix('.conv'))  # of a ConvModule
        return self.modules is None or any(path_matches(p, pattern) for p in paths for pattern in self.modules)


def moe_keys(model: Mapping) -> list[MoEKeys]:
    """All dicts with MoE keys in the ``model`` of a config."""
    return list(_moe_keys(model, ''))


def _moe_keys(node: object, path: str) -> Iterable[MoEKeys]:
    dot = f'{path}.' if path else ''
    if isinstance(node, (list, tuple)):
        for number, item in enumerate(node):
            yield from _moe_keys(item, f'{dot}{number}')
    if not isinstance(node, dict):
        return
    kinds = {'MoERetinaHead': (HEAD,), 'MoEResNet': (STAGE, CONV), 'MixtureClassifier': (OTHER,)}.get(type_name(node))
    if kinds is not None and isinstance(node.get('moe'), dict):
        yield MoEKeys(f'{dot}moe', path, kinds, node['moe'])
    if type_name(node.get('conv_cfg')) == 'MoEConv2d':
        yield MoEKeys(f'{dot}conv_cfg', path, (CONV,), node['conv_cfg'])
    if type_name(node) == 'WithExperts' or node.get('model') == 'WithExperts':
        entries = node['experts']
        for number, entry in enumerate([entries] if isinstance(entries, dict) else entries):
            at = f'{dot}experts' if isinstance(entries, dict) else f'{dot}experts.{number}'
            modules = entry['modules']
            modules = (modules,) if isinstance(modules, str) else tuple(modules)
            yield MoEKeys(at, path, (OF_TYPE[type_name(entry)],), entry, modules)
    for number, plugin in enumerate(node.get('plugins') or ()):
        if isinstance(plugin, Mapping) and type_name(plugin.get('cfg')) == 'MoEBlock':
            yield MoEKeys(f'{dot}plugins.{number}.cfg', path, (BLOCK,), plugin['cfg'])
    for key, value in node.items():
        yield from _moe_keys(value, f'{dot}{key}')


def keys_of(place: ExpertPlace, all_keys: Sequence[MoEKeys]) -> MoEKeys:
    """The dict of the config that a place was built from.

    Raises:
        MoEConfigError: two dicts of the same part may have built it.
    """
    fitting = [keys for keys in all_keys if keys.builds(place)]
    longest = max((len(keys.owner) for keys in fitting), default=0)
    fitting = [keys for keys in fitting if len(keys.owner) == longest]
    if len(fitting) != 1:
        paths = ' or '.join(f'model.{keys.path}' for keys in fitting) or 'no part of the config that is known here'
        raise MoEConfigError(f'{place.label}: its experts come from {paths}; expected one place in the config')
    return fitting[0]
