"""Config files of small detectors and checkpoints of their models, for the tests of the converters."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from mmengine.runner import load_checkpoint
from small_models import RETINANET, batch, build, config, shrink, spread_weights
from torch import Tensor, nn

from moe_det.converters.files import config_text
from moe_det.running.launch import load_config

IMPORTS = dict(imports=['moe_det'], allow_failed_imports=False)
HOOKS = [dict(type='MoEHook')]


def write_config(path: Path, moe: dict | None = None, **changes) -> Path:
    """A small RetinaNet of mmdet's own config; with ``moe`` its head has experts; ``changes`` by part of the model."""
    cfg = config(f"_base_ = '{RETINANET}'")
    cfg.model.backbone.depth = changes.pop('depth', 18)
    shrink(cfg, base_channels=4, channels=8)
    cfg.model.bbox_head.stacked_convs = 2
    if moe is not None:
        cfg.model.bbox_head.update(type='MoERetinaHead', moe=moe)
    for part, values in changes.items():
        cfg.model[part].update(values)
    if moe is not None or changes:
        cfg.custom_imports, cfg.custom_hooks = IMPORTS, HOOKS
    path.write_text(config_text(cfg))  # cfg.dump takes seconds to lay the text out
    return path


def model_of(config_file: Path, checkpoint: Path | None = None) -> nn.Module:
    """The model of a config file, in evaluation, with the weights of a checkpoint that must fit exactly."""
    model = build(load_config(config_file).model)
    if checkpoint is not None:
        load_checkpoint(model, str(checkpoint), map_location='cpu', strict=True)
    return model.eval()


def write_checkpoint(
    config_file: Path, path: Path, change: Callable[[nn.Module], object] = lambda model: None, seed: int = 0
) -> Path:
    """Weights at which outputs differ clearly from place to place, changed by ``change``."""
    torch.manual_seed(seed)
    model = spread_weights(model_of(config_file), seed)
    with torch.no_grad():
        change(model)
    torch.save(dict(meta=dict(dataset_meta=dict(classes=('a', 'b', 'c'))), state_dict=model.state_dict()), path)
    return path


def outputs_of(model: nn.Module) -> list[Tensor]:
    """Class logits and box deltas of all levels for two images."""
    data = model.data_preprocessor(batch(), False)
    with torch.no_grad():
        return [tensor for part in model(**data, mode='tensor') for tensor in part]


def assert_same_outputs(ours: nn.Module, theirs: nn.Module) -> None:
    """Both models compute the same, to 1e-5 of the largest output."""
    expected = outputs_of(theirs)
    assert max(x.std().item() for x in expected) > 0.1  # not two networks that compute nothing
    for one, other in zip(outputs_of(ours), expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5 * max(1.0, other.abs().max().item()))
