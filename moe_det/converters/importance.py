"""Which experts count most on the validation images."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy

import torch
from mmengine.config import Config
from mmengine.model import BaseModel
from torch import Tensor
from tqdm import tqdm

from ..common.console import say
from ..errors import MoEConfigError
from ..routing.records import UsageRecorder
from ..routing.router import Router
from ..running.trained_model import test_batches


def expert_importance(
    cfg: Config, model: BaseModel, routers: Mapping[str, Router], limit: int | None
) -> dict[str, Tensor]:
    """Runs the validation images and sums the weight of every expert.

    Args:
        cfg: the model's config; without ``val_dataloader`` the test images are taken.
        model: in evaluation.
        routers: those to report on, by label.
        limit: only the first N images; None takes all.

    Returns:
        Label -> (E,) importance, on the CPU.

    Raises:
        MoEDetError: the images cannot be used, or no image reached a layer.
    """
    seen = deepcopy(cfg)
    if cfg.get('val_dataloader') is not None:
        seen.test_dataloader = cfg.val_dataloader
    with UsageRecorder(model) as recorder, torch.no_grad():
        batches = test_batches(seen, limit, getattr(model, 'trained_labels', None))
        for _, batch in tqdm(batches, desc='importance', unit='batch', disable=None):
            model.test_step(batch)
    found = {}
    for label, router in routers.items():
        if label not in recorder.usage:
            raise MoEConfigError(f'{label}: no validation image reached the layer; name its experts yourself')
        found[label] = recorder.usage[label].importance.sum(0).cpu()
        say(f'{label}: importance by expert {_in_words(found[label], router.slots)}')
    return found


def _in_words(importance: Tensor, slots: int) -> str:
    shares = (importance * slots / importance.sum()).tolist()
    texts = [f'{expert}: {share:.1%}' for expert, share in enumerate(shares)]
    if slots == 1:
        return ', '.join(texts)
    copies = len(texts) // slots
    return '; '.join(f'{", ".join(texts[s * copies : (s + 1) * copies])} of shard {s}' for s in range(slots))


def most_important(importance: Tensor, slots: int, count: int) -> list[int]:
    """The ``count`` experts of most importance in every slot, in ascending order; ties go to the lowest number.

    Args:
        importance: (E,), slot after slot.
        slots: groups of experts of which every row runs one; 1 for experts without shards.
        count: of each slot; all where it has fewer.
    """
    by_slot = importance.view(slots, -1)
    order = torch.argsort(by_slot, dim=1, descending=True, stable=True)[:, :count]
    return sorted((order + torch.arange(slots)[:, None] * by_slot.shape[1]).flatten().tolist())
