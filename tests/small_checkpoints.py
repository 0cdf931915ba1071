"""Configs with experts on the tiny data set of tests/tools, and checkpoints whose gates are planted."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from pathlib import Path

import torch
from mmdet.registry import MODELS
from torch import nn

from moe_det.routing import find_routers
from moe_det.running.launch import load_config


def moe_config(dense: Path, name: str = 'moe', **moe) -> Path:
    """Writes a config beside ``dense`` whose RetinaNet head has four experts, two per row."""
    path = dense.with_name(f'{name}.py')
    settings = {**dict(num_experts=4, top_k=2, width=0.5), **moe}
    path.write_text(
        f"_base_ = './{dense.name}'\n"
        "custom_imports = dict(imports=['moe_det'], allow_failed_imports=False)\n"
        f"model = dict(bbox_head=dict(type='MoERetinaHead', moe={settings!r}))\n"
    )
    return path


def checkpoint(config: Path, path: Path, plant: Callable[[nn.Module], None] | None = None, seed: int = 0) -> Path:
    """Saves random weights of a config's model, changed by ``plant``, as mmengine's Runner would."""
    torch.manual_seed(seed)
    cfg = load_config(config)
    with contextlib.redirect_stdout(io.StringIO()):
        model = MODELS.build(cfg.model)
    if plant is not None:
        with torch.no_grad():
            plant(model)
    classes = cfg.test_dataloader.dataset.get('metainfo', {}).get('classes', ('disc', 'box'))
    meta = dict(seed=seed, dataset_meta=dict(classes=tuple(classes)))
    torch.save(dict(state_dict=model.state_dict(), meta=meta), path)
    return path


def plant_logits(model: nn.Module, *logits: float) -> None:
    """Makes every gate give these logits to every row, whatever it sees."""
    with torch.no_grad():
        for router in find_routers(model).values():
            router.gate.fc.weight.zero_()
            router.gate.fc.bias.copy_(torch.tensor(logits))


def plant_varied(model: nn.Module) -> None:
    """Makes gates depend on what they see, strongly enough that all experts are used."""
    with torch.no_grad():
        for router in find_routers(model).values():
            weight = router.gate.fc.weight
            weight.copy_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)) * 50)
            router.gate.fc.bias.zero_()
