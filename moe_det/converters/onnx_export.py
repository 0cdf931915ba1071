"""The network as an ONNX graph in which every expert is present."""

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from ..common.atomic_file import write_atomically
from ..common.checkpoints import check_checkpoint
from ..common.console import say, warn
from ..errors import CheckpointError, MoEConfigError
from ..running.trained_model import load_trained_model
from .comparison import largest_difference, tensors_in
from .files import read_model_config
from .places import ExpertPlace, expert_places, moe_keys

OPSET = 17
TOLERANCE = 1e-4
OUTPUT_NAMES = ('class_logits', 'box_deltas', 'centerness')  # of mmdet's single-stage heads, in order


class PlainForward(nn.Module):
    """What a detector's network computes, as a flat tuple: no boxes are selected.

    Args:
        model: its ``forward(image, mode='tensor')`` returns nested lists of tensors.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """(N, 3, H, W), normalised and padded as the data preprocessor does, -> all outputs."""
        return tuple(tensors_in(self.model(image, mode='tensor')))


def export_onnx(
    config: str,
    checkpoint: str,
    out: str,
    *,
    shape: Sequence[int] = (800, 1344),
    batch: int = 1,
    cfg_options: Sequence[str] | None = None,
) -> dict[str, int]:
    """Exports a network with every expert in the graph; the function behind ``export_onnx.py``.

    The graph has the size of its input built in. Its input is the normalised and padded image, its outputs are class
    logits and box deltas of every level (what the head gives to mmdet's selection of boxes).

    Args:
        config: config of a single-stage detector or a classifier.
        checkpoint: file or URL of its weights.
        out: the .onnx file.
        shape: height and width of the image.
        batch: number of images.
        cfg_options: changes of the config.

    Returns:
        Number of experts in the graph by layer.

    Raises:
        MoEConfigError: the package onnx is missing, or the model cannot run an image of this size.
        CheckpointError: the checkpoint does not fit the config, an expert is not in the graph, or onnxruntime computes
            something else.
    """
    if not out.endswith('.onnx'):
        raise MoEConfigError(f'OUT {out}: expected a name that ends in .onnx')
    if find_spec('onnx') is None:
        raise MoEConfigError('the export needs the package onnx: pip install onnx onnxruntime')
    cfg = read_model_config(config, cfg_options)
    for found in moe_keys(cfg.model):
        found.keys['dispatch'] = 'all'
    path = check_checkpoint(checkpoint, 'checkpoint')
    model = load_trained_model(cfg, path, 'cpu', require_moe=False)
    if getattr(model, 'with_roi_head', False):
        raise MoEConfigError(f'{config}: {type(model).__name__} selects boxes between its two stages: no graph')
    image = torch.randn(batch, 3, *shape, generator=torch.Generator().manual_seed(0))
    network = PlainForward(model).eval()
    try:
        with torch.no_grad():
            expected = network(image)
            names = output_names(model(image, mode='tensor'))
    except (RuntimeError, TypeError, NotImplementedError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise MoEConfigError(f'--shape {shape[0]} {shape[1]}: the network cannot run this image: {reason}') from error
    try:
        graph = graph_of(network, image, names)
    except RuntimeError as error:  # torch's exporter
        raise MoEConfigError(f'{config}: no ONNX form: {str(error).splitlines()[0]}') from error
    places = expert_places(model)
    counts = experts_in_graph(graph, places)
    for place in places:
        say(f'{place.label}: {counts[place.label]} of {len(place.group)} experts in the graph')
    if any(counts[place.label] != len(place.group) for place in places):
        raise CheckpointError(f'{out}: experts are missing in the graph; nothing was written')
    _compare(graph, image, expected)
    try:
        write_atomically(out, graph)
    except OSError as error:
        raise MoEConfigError(f'OUT {out}: cannot be written: {error.strerror}') from error
    say(f'wrote {out}: image {tuple(image.shape)} -> {", ".join(names)}')
    return counts


def output_names(outputs: object) -> list[str]:
    """A name for every tensor of a head's outputs: ``class_logits_0`` for the first level, ``output_0`` elsewhere."""
    if not isinstance(outputs, tuple) or not all(isinstance(part, (list, tuple)) for part in outputs):
        return [f'output_{i}' for i, _ in enumerate(tensors_in(outputs))]
    kinds = [*OUTPUT_NAMES, *(f'output_{i}' for i in range(len(OUTPUT_NAMES), len(outputs)))]
    return [f'{kind}_{i}' for kind, part in zip(kinds, outputs, strict=False) for i, _ in enumerate(tensors_in(part))]


def graph_of(network: nn.Module, image: Tensor, names: Sequence[str]) -> bytes:
    """Traces a network in evaluation and returns the ONNX file's content."""
    with tempfile.TemporaryDirectory() as folder, routing_operators(), warnings.catch_warnings():
        warnings.simplefilter('ignore')  # the tracer names each size that becomes part of the graph, which is meant
        target = os.path.join(folder, 'graph.onnx')
        torch.onnx.export(
            network,
            (image,),
            target,
            input_names=['image'],
            output_names=list(names),
            opset_version=OPSET,
            dynamo=False,
            # weights keep their names, by which experts are counted; runtimes fold norms and constants themselves
            training=torch.onnx.TrainingMode.PRESERVE,
            do_constant_folding=False,
        )
        with open(target, 'rb') as file:
            return file.read()


@contextmanager
def routing_operators() -> Iterator[None]:
    """Exports the operators of routing and mixtures for which torch has no ONNX form, or one that overflows.

    A stable sort is a TopK, which takes the lower index first among equals (ONNX operators, TopK). Torch writes
    logsigmoid as Log(Sigmoid(x)), which is -inf for confident logits; Softplus is exact there.
    """
    from torch.onnx import register_custom_op_symbolic, symbolic_helper, unregister_custom_op_symbolic

    def sort(g, x, *arguments):
        # aten::sort(x, dim, descending) or aten::sort(x, stable, dim, descending)
        dim, descending = (symbolic_helper._get_const(value, 'i', 'dim') for value in arguments[-2:])
        size = symbolic_helper._get_tensor_dim_size(x, dim)
        if size is None:  # behind an operation whose shape the exporter does not follow
            number = g.op('Constant', value_t=torch.tensor([dim], dtype=torch.int64))
            length = g.op('Gather', g.op('Shape', x), number)
        else:
            length = g.op('Constant', value_t=torch.tensor([size], dtype=torch.int64))
        return g.op('TopK', x, length, axis_i=dim, largest_i=int(descending), sorted_i=1, outputs=2)

    def isneginf(g, x):
        return g.op('IsInf', x, detect_negative_i=1, detect_positive_i=0)

    def log_sigmoid(g, x):
        return g.op('Neg', g.op('Softplus', g.op('Neg', x)))

    def logaddexp(g, x, y):
        distance = g.op('Abs', g.op('Sub', x, y))
        return g.op('Add', g.op('Max', x, y), g.op('Softplus', g.op('Neg', distance)))

    operators: dict[str, Callable[..., Any]] = {
        'aten::sort': sort,
        'aten::isneginf': isneginf,
        'aten::log_sigmoid': log_sigmoid,
        'aten::logaddexp': logaddexp,
    }
    for name, symbolic in operators.items():
        register_custom_op_symbolic(name, symbolic, OPSET)
    try:
        yield
    finally:
        for name in operators:
            unregister_custom_op_symbolic(name, OPSET)


def experts_in_graph(graph: bytes, places: Sequence[ExpertPlace]) -> dict[str, int]:
    """Number of experts of each layer, by label, all of whose parameters an operation of an ONNX graph reads."""
    import onnx

    content = onnx.load_model_from_string(graph).graph
    read = {name for node in content.node for name in node.input}
    weights = {tensor.name for tensor in content.initializer} & read
    return {
        place.label: sum(
            all(f'model.{place.path}.experts.{e}.{name}' in weights for name, _ in expert.named_parameters())
            for e, expert in enumerate(place.group.experts)
        )
        for place in places
    }


def _compare(graph: bytes, image: Tensor, expected: Sequence[Tensor]) -> None:
    if find_spec('onnxruntime') is None:
        warn('onnxruntime is not installed: the graph was not run (pip install onnxruntime)')
        return
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(graph, options, providers=['CPUExecutionProvider'])
    outputs = [torch.from_numpy(value) for value in session.run(None, {'image': image.numpy()})]
    difference = largest_difference(outputs, list(expected))
    if difference is None or difference > TOLERANCE:
        found = 'in number or shape' if difference is None else f'by {difference:.1e}'
        raise CheckpointError(f'the outputs in onnxruntime differ from those in torch {found}; nothing was written')
    say(f'largest difference of the outputs in onnxruntime: {difference:.1e}')
