"""Runs the test images through a classifier and shows which classes its gates give to which experts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.runner import Runner
from torch import nn
from tqdm import tqdm

from ..common.checkpoints import file_sha256
from ..common.console import say, write_result
from ..dataset_check.before_run import check_data
from ..errors import MoEConfigError
from ..figures.heat import draw_heat
from ..figures.style import PAPER, Wording, drawing
from ..routing.router import find_routers
from ..running.launch import load_config
from ..running.trained_model import load_trained_model
from .base import MoEClassifier
from .cifar100_groups import class_groups
from .class_allocation import (
    TOP_CLASSES,
    AllocationMeter,
    ClassAllocation,
    allocation_text,
    class_heat,
    group_heat,
)

JSON_NAME = 'class_allocation.json'
PNG_DPI = 160


def show_class_allocation(
    config: str,
    checkpoint: str,
    *,
    out_dir: str | None = None,
    top: int = TOP_CLASSES,
    data_root: str | None = None,
    device: str | None = None,
    cfg_options: list[str] | None = None,
) -> list[ClassAllocation]:
    """Prints and writes the mean gate probability per class; the function behind ``class_allocation.py``.

    Args:
        config: the config of a classifier.
        checkpoint: its weights.
        out_dir: folder of ``class_allocation.json`` and the figures; None takes one named after the checkpoint,
            next to it.
        top: classes listed per expert.
        data_root: folder that replaces the config's data folder.
        device: see :func:`.trained_model.analysis_device`.
        cfg_options: changes of the config.

    Returns:
        One per layer that decides once per image.

    Raises:
        MoEDetError: the config, the checkpoint or the data cannot be used, or the model is not an image classifier.
    """
    cfg = load_config(config, cfg_options, data_root)
    model = load_trained_model(cfg, checkpoint, device)
    if not isinstance(model, MoEClassifier):
        raise MoEConfigError(
            f'{config}: the model is a {type(model).__name__}, expected an image classifier such as ResNetClassifier; '
            'for a detector see size_specialization.py'
        )
    check_data(cfg, ('test',))
    allocations = allocate(cfg, model)
    folder = Path(out_dir) if out_dir is not None else Path(checkpoint).with_suffix('.allocation')
    found: dict[str, Any] = {'config': str(config), 'checkpoint': str(checkpoint), 'sha256': file_sha256(checkpoint)}
    found['layers'] = [allocation.to_dict() for allocation in allocations]
    write_result('--out-dir', folder / JSON_NAME, found)
    figures = write_figures(allocations, folder)
    for allocation in allocations:
        say(allocation_text(allocation, top))
    say(f'\nNumbers and figures: {folder} ({JSON_NAME}, {", ".join(path.name for path in figures)})')
    return allocations


def allocate(cfg: Config, model: MoEClassifier) -> list[ClassAllocation]:
    """Measures a classifier's layers on the test set of its config.

    Args:
        cfg: the config, for ``test_dataloader``.
        model: in evaluation mode, on its device.

    Raises:
        MoEConfigError: no layer decides once per image, or the data set does not name the model's classes.
    """
    loader = Runner.build_dataloader(cfg.test_dataloader)
    classes = _classes(loader.dataset, model)
    groups = class_groups(classes)
    meters: dict[str, AllocationMeter] = {}
    routers = find_routers(model)
    with torch.no_grad():
        for batch in tqdm(loader, desc='batches', unit='batch', disable=None):
            (predicted,) = model.test_step(batch)
            labels = predicted['labels'].cpu().numpy()
            for layer, probs in predicted['gates'].items():
                if layer not in meters:
                    meters[layer] = AllocationMeter(layer, routers[layer].num_experts, classes, groups)
                meters[layer].update(probs.cpu().numpy(), labels)
    if not meters:
        raise MoEConfigError(f"{cfg.filename}: every MoE layer has unit='patch', and a patch has no class of its own")
    return [meter.compute() for meter in meters.values()]


def _classes(dataset: object, model: nn.Module) -> Sequence[str]:
    meta = getattr(dataset, 'metainfo', None)
    classes = meta.get('classes') if isinstance(meta, Mapping) else None
    if not classes or len(classes) != model.num_classes:
        listed = 'no classes' if not classes else f'{len(classes)} classes'
        raise MoEConfigError(
            f'test_dataloader.dataset: its metainfo has {listed}, the model num_classes={model.num_classes}'
        )
    return tuple(classes)


def write_figures(allocations: Sequence[ClassAllocation], folder: Path) -> list[Path]:
    """Writes per layer the table of classes and, where there are superclasses, theirs as PNG files into ``folder``."""
    written = []
    with drawing(PAPER):
        for number, allocation in enumerate(allocations):
            caption = (
                f'{allocation.layer}: mean over the test images of a class ({int(allocation.samples.sum()):,} images) '
                "of the gate's probability for each expert, softmax over all experts. Shade: more (gold) or less "
                '(purple) than the expert has of all images.'
            )
            for name, heat in (('classes', class_heat(allocation)), ('superclasses', group_heat(allocation))):
                if not heat:
                    continue
                path = folder / f'allocation_{number:02d}_{name}.png'
                figure = draw_heat(heat, PAPER, Wording(f'Which {name} each expert gets', caption))
                figure.savefig(path, dpi=PNG_DPI)
                written.append(path)
    return written
