"""What each part of a model costs: parameters and multiply-adds, of all experts and of those that run.

Which expert a routing row gets changes no count: every row runs K experts and all experts of a layer are alike. So the
numbers of a network with random gates are exact. They are counted from shapes alone: the model runs with all experts
on tensors without contents (PyTorch's fake tensors), and the share of the experts that a row leaves out is taken off.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

import torch
from mmdet.models.detectors import BaseDetector
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine.model import BaseModel
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from ..layers.settings import MoESettings
from ..routing.experts import ExpertGroup, fold_common
from ..routing.router import Router
from .model_cost import count_forward_macs, experts_in_words, parameter_counts, router_of

WHOLE = 'whole model'


@dataclasses.dataclass(frozen=True)
class PartCost:
    """Cost of one part of a model for one image.

    Attributes:
        params: parameters.
        active_params: those of them that a single routing row uses.
        macs: multiply-adds if every expert ran on every row; None where the detector has no plain forward.
        active_macs: multiply-adds that run.
    """

    params: int
    active_params: int
    macs: int | None
    active_macs: int | None


@dataclasses.dataclass(frozen=True)
class ModelCost:
    """Cost of a model.

    Attributes:
        experts: family, K, E and unit in words; ``'dense'`` without experts.
        size: height and width of the network's input, padded.
        parts: name of a part of the detector -> cost; the last is the whole model.
    """

    experts: str
    size: tuple[int, int]
    parts: dict[str, PartCost]


def model_cost(model_cfg: Mapping, shape: tuple[int, int]) -> ModelCost:
    """Counts parameters and multiply-adds of a model for one image, in evaluation.

    Multiply-adds are those of convolutions and matrix products; norms, activations and box selection are left out.

    Args:
        model_cfg: the ``model`` of a config.
        shape: height and width of the image; padded as the model's preprocessor does.
    """
    model = _as_in_evaluation(model_cfg)
    data = model.data_preprocessor(_one_image(model, shape), False)
    sorted_groups = {
        path for path, group in model.named_modules() if isinstance(group, ExpertGroup) and group.dispatch == 'sorted'
    }
    words = experts_in_words(model)
    _run_all_experts(model)
    try:
        with FakeTensorMode(allow_non_fake_inputs=True) as fake:
            macs, idle = _count(model, {**data, 'inputs': fake.from_tensor(data['inputs'])}, sorted_groups)
    except Exception:  # something needs values, such as the proposals of a two-stage detector: compute them
        macs, idle = _count(model, data, sorted_groups)
    if idle is None:  # experts that compute side by side, not one by one: let those that are chosen run
        active = _count(_as_in_evaluation(model_cfg), data, set())[0]
    else:
        active = {name: None if count is None else count - idle[name] for name, count in macs.items()}
    parts = {name: PartCost(*parameter_counts(part), macs[name], active[name]) for name, part in _parts(model).items()}
    return ModelCost(words, tuple(data['inputs'].shape[-2:]), parts)


def _as_in_evaluation(model_cfg: Mapping) -> BaseModel:
    """The model; what copies share in training is part of each of them."""
    model = MODELS.build(copy.deepcopy(model_cfg)).eval()  # DETR's head changes the dict it is given
    fold_common(model)
    return model


def _parts(model: nn.Module) -> dict[str, nn.Module]:
    """The parts of a model that have parameters, and the whole."""
    children = {name: part for name, part in model.named_children() if any(True for _ in part.parameters())}
    return {**children, WHOLE: model}


def _count(
    model: nn.Module, data: dict, sorted_groups: set[str]
) -> tuple[dict[str, int | None], dict[str, int] | None]:
    """Multiply-adds of each part, and of the experts that sorted dispatch would leave out.

    Args:
        model: with ``dispatch='all'`` where idle experts are to be counted.
        data: of one image, preprocessed.
        sorted_groups: paths of the groups whose experts will not all run.

    Returns:
        Part -> multiply-adds, None without a plain forward; part -> those of idle experts, None where experts do not
        compute one by one.
    """
    parts = _parts(model)
    with ExitStack() as stack:
        counters = {name: stack.enter_context(_counted([part])) for name, part in parts.items() if part is not model}
        groups = {
            path: stack.enter_context(_GroupCounter(group).running())
            for path, group in model.named_modules()
            if path in sorted_groups and isinstance(group, ExpertGroup)
        }
        whole = count_forward_macs(model, data)
    macs = {name: None if whole is None else counter.macs for name, counter in counters.items()}
    macs[WHOLE] = whole
    of_groups = {path: counter.idle(router_of(model, path)) for path, counter in groups.items()}
    known = {path: macs_of_idle for path, macs_of_idle in of_groups.items() if macs_of_idle is not None}
    if len(known) < len(of_groups):
        return macs, None
    idle = {name: sum(n for path, n in known.items() if f'{path}.'.startswith(f'{name}.')) for name in counters}
    return macs, {**idle, WHOLE: sum(known.values())}


def _run_all_experts(model: nn.Module) -> None:
    """Switches every layer to running all experts, which decides nothing from values."""
    for module in model.modules():
        for key, value in list(vars(module).items()):
            if isinstance(value, MoESettings):
                setattr(module, key, dataclasses.replace(value, dispatch='all'))
        if isinstance(module, ExpertGroup):
            module.dispatch = 'all'


def _one_image(model: nn.Module, shape: tuple[int, int]) -> dict:
    """An empty image as a data loader gives it to a detector, else as a batch of classification."""
    height, width = shape
    if not isinstance(model, BaseDetector):
        channels = len(getattr(model.data_preprocessor, 'mean', range(3)))
        if channels == 1:  # one mean for however many channels: what the first layer takes
            channels = next(m.in_channels for m in model.modules() if isinstance(m, nn.Conv2d))
        return dict(inputs=torch.zeros(1, channels, height, width, dtype=torch.uint8))
    sample = DetDataSample(
        metainfo=dict(img_id=0, img_shape=shape, ori_shape=shape, scale_factor=(1.0, 1.0), batch_input_shape=shape)
    )
    return dict(inputs=[torch.zeros(3, height, width, dtype=torch.uint8)], data_samples=[sample])


class _Counter:
    """Multiply-adds of some modules while they run; None until one of them does."""

    def __init__(self) -> None:
        self.macs: int | None = None

    def wrap(self, forward: Callable) -> Callable:
        """``forward``, counted."""

        def counted(*args, **kwargs):
            with FlopCounterMode(display=False) as counter:
                result = forward(*args, **kwargs)
            self.macs = (self.macs or 0) + counter.get_total_flops() // 2
            return result

        return counted


@contextmanager
def _counted(modules: Sequence[nn.Module]) -> Iterator[_Counter]:
    """Counts what modules run; mmdet calls ``head.forward`` itself, which hooks would not see."""
    counter = _Counter()
    with ExitStack() as stack:
        for module in modules:
            # an expert group that is itself a part of the model is counted twice, one counter inside the other
            before = vars(module).get('forward')
            module.forward = counter.wrap(module.forward)
            stack.callback(_restore, module, before)
        yield counter


def _restore(module: nn.Module, forward: Callable | None) -> None:
    if forward is None:
        del module.forward
    else:
        module.forward = forward


class _GroupCounter:
    """Multiply-adds of an expert group, its experts and its shared expert."""

    def __init__(self, group: ExpertGroup) -> None:
        self.group = group

    @contextmanager
    def running(self) -> Iterator[_GroupCounter]:
        shared = [self.group.shared] if self.group.shared is not None else []
        with (
            _counted([self.group]) as self.all,
            _counted(list(self.group.experts)) as self.experts,
            _counted(shared) as self.shared,
        ):
            yield self

    def idle(self, router: Router | None) -> int | None:
        """Multiply-adds that sorted dispatch leaves out: E - K experts and mixing their outputs; None: not known."""
        if (
            router is None
            or router.needs_keys
            or (router.test_top_k >= len(self.group) and router.rows_per_expert is None)
        ):
            return 0  # one expert, a gate that looks at all experts, or a soft mixture
        if router.rows_per_expert is not None or not (self.all.macs and self.experts.macs):
            return None
        experts, top_k = len(self.group), router.test_top_k
        mixing = self.all.macs - self.experts.macs - (self.shared.macs or 0)
        # a single output is scaled, without a product, and a row's shards run as one convolution
        kept = mixing * top_k // experts if top_k > 1 and router.slots == 1 else 0
        return self.experts.macs * (experts - top_k) // experts + mixing - kept
