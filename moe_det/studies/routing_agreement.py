"""Measures how often the experts of an image stay the same when the image is flipped, scaled, compressed or noisy."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ..analysis.agreement import Agreement, AgreementSums
from ..common.checkpoints import check_checkpoint, file_sha256
from ..common.console import check_result, say, write_result
from ..common.image_changes import Changer, ImageChange, changed_samples, read_changes
from ..errors import DataError
from ..routing.records import Recorder
from ..routing.router import find_routers
from ..routing.routing import Routing
from ..routing.rows import RowLayout
from ..routing.second_look import comparable_routers, matched_rows, run_until_decided
from ..running.launch import load_config
from ..running.trained_model import load_trained_model, test_batches

DEFAULT_CHANGES = ('flip', 'scale:0.75', 'jpeg:50', 'noise:8')


def routing_agreement(
    config: str,
    checkpoint: str,
    *,
    changes: Sequence[str] | None = None,
    limit: int | None = None,
    seed: int = 0,
    data_root: str | None = None,
    json_file: str | None = None,
    device: str | None = None,
    cfg_options: list[str] | None = None,
) -> dict[str, Any]:
    """Prints, by layer and change, how often the decision stays; the function behind ``routing_agreement.py``.

    Args:
        config: a config of a detector or classifier with experts.
        checkpoint: its weights.
        changes: such as ``flip``, ``scale:0.75``, ``jpeg:50``, ``noise:8``, ``brightness:20``; None takes the first
            four.
        limit: only the first N test images; None takes all.
        seed: of the noise.
        data_root: folder that replaces the config's data folder.
        json_file: writes the result there.
        device: see :func:`.trained_model.analysis_device`.
        cfg_options: changes of the config.

    Returns:
        ``config``, ``checkpoint``, ``sha256``, ``images``, ``seed`` and ``agreement``: by change and layer the numbers
        of :class:`~moe_det.analysis.agreement.Agreement`.

    Raises:
        MoEDetError: the config, the checkpoint or the data cannot be used, or an unknown change.
    """
    wanted = read_changes(changes or DEFAULT_CHANGES, '--changes')
    check_result('--json', json_file)
    cfg = load_config(config, cfg_options, data_root)
    model = load_trained_model(cfg, checkpoint, device)
    comparable_routers(find_routers(model))  # before the data are read
    batches = test_batches(cfg, limit, model.trained_labels)
    progress = tqdm(batches, desc='images', unit='batch', disable=None)
    found = agreement_of(model, (batch for _, batch in progress), wanted, seed)
    result = {
        'config': str(config),
        'checkpoint': str(checkpoint),
        'sha256': file_sha256(check_checkpoint(checkpoint, 'checkpoint')),
        'images': batches.num_images,
        'seed': seed,
        'agreement': {
            change: {layer: numbers.to_dict() for layer, numbers in of.items()} for change, of in found.items()
        },
    }
    write_result('--json', json_file, result)
    say(agreement_table(found))
    return result


@torch.no_grad()
def agreement_of(
    model: Any, batches: Iterable[dict], changes: Sequence[ImageChange], seed: int = 0
) -> dict[str, dict[str, Agreement]]:
    """By change and layer, how often decisions stay.

    Args:
        model: a detector or classifier in evaluation mode.
        batches: as ``model.test_step`` takes them.
        changes: of the images.
        seed: of the noise.

    Raises:
        DataError: no image reached a layer that can be compared.
    """
    routers = comparable_routers(find_routers(model))
    sums = {str(c): {name: AgreementSums(router.slots) for name, router in routers.items()} for c in changes}
    generator = torch.Generator().manual_seed(seed)
    change_inputs = Changer(model.data_preprocessor)
    for batch in batches:
        data = model.data_preprocessor(batch, False)
        inputs = data.pop('inputs')
        first = _decisions(model, inputs, data, None)
        calls = {name: len(of) for name, of in first.items()}
        for change in changes:
            changed = change_inputs(inputs, change, generator)
            rest = dict(data)
            if 'data_samples' in rest:
                rest['data_samples'] = changed_samples(rest['data_samples'], inputs.shape, changed.shape)
            second = _decisions(model, changed, rest, calls)
            for name in routers:
                for before, after in zip(first[name], second[name], strict=True):
                    _compare(sums[str(change)][name], before, after, change.mirrors)
    if not all(of.rows for by_layer in sums.values() for of in by_layer.values()):
        raise DataError('no image reached a layer whose rows can be compared')
    return {change: {name: of.mean() for name, of in by_layer.items()} for change, by_layer in sums.items()}


Decision = tuple[Tensor, Tensor, RowLayout]


def _compare(sums: AgreementSums, before: Decision, after: Decision, mirrored: bool) -> None:
    rows = matched_rows(before[2], after[2], mirrored)
    sums.add(before[0].numpy(), before[1].numpy(), after[0][rows].numpy(), after[1][rows].numpy())


class _Decisions(Recorder):
    """Probabilities, weights (R, E) and layout of every call, by layer."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.everyone, self.routers = self.routers, comparable_routers(self.routers)
        self.found: dict[str, list[Decision]] = {name: [] for name in self.routers}

    def receive(self, layer: str, routing: Routing, layout: RowLayout) -> None:
        weights = routing.over_experts(routing.weights, 0.0)
        self.found[layer].append((routing.probs.double().cpu(), weights.cpu(), layout))


def _decisions(model: Any, inputs: Tensor, data: dict, calls: Mapping[str, int] | None) -> dict[str, list[Decision]]:
    """Runs a batch; with the number of calls that are expected, only until the last of them."""
    with _Decisions(model) as recorder:
        if calls is None:
            model(inputs, **data, mode='tensor')
        else:
            run_until_decided(lambda: model(inputs, **data, mode='tensor'), recorder.everyone, calls)
    return recorder.found


def agreement_table(found: Mapping[str, Mapping[str, Agreement]]) -> str:
    """The numbers as a plain-text table."""
    width = max(len(layer) for of in found.values() for layer in [*of, 'layer'])
    lines = [f'{"change":14} {"layer":{width}}  same best  overlap  KL bits     rows']
    for change, of in found.items():
        for layer, a in of.items():
            divergence = '-' if a.divergence is None else f'{a.divergence:.4f}'
            line = f'{change:14} {layer:{width}}  {a.same_best:9.1%}  {a.overlap:7.1%}  {divergence:>7}  {a.rows:7d}'
            lines.append(f'{line}  (KL of {a.rows - a.unbounded})' if a.unbounded else line)
    return '\n'.join(lines)
