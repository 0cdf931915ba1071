"""Measured time of each row's detector over that of the dense one, on the images that it was trained for."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable

import torch
from speed.clock import interleave, ratio
from torch import nn

from .runs import checkpoint_of, config_of
from .settings import BASELINE, BATCH, ROWS

ROUNDS, WARM_UP = 20, 4


def times_over_dense(names: list[str], args: Namespace) -> dict[str, dict[str, dict]]:
    """Times one image and one training step of every row beside the dense detector, in turn.

    Routes are those of the first finished seed's checkpoint, and are real images' routes.

    Args:
        names: rows that have a finished run.
        args: of the command line.

    Returns:
        Row -> ``'inference'`` (one image) and ``'training'`` (forward and backward of a batch) -> ratio to dense.
    """
    torch.set_num_threads(args.threads or torch.get_num_threads())
    found: dict[str, dict[str, dict]] = {}
    dense = None
    for name in names:
        dense = dense or _runs_of(BASELINE, args)
        own = _runs_of(name, args)
        for kind in ('inference', 'training'):
            times = interleave({'dense': dense[kind], 'own': own[kind]}, ROUNDS, WARM_UP, 'cpu')
            one = ratio(times['own']['total'], times['dense']['total'])
            found.setdefault(name, {})[kind] = one
            print(f'{name}: {kind} {one["median"]:.2f} of dense', flush=True)
    return found


def _runs_of(name: str, args: Namespace) -> dict[str, Callable[[], None]]:
    from mmengine.registry import init_default_scope
    from mmengine.runner import Runner

    cfg = config_of(name)
    init_default_scope(cfg.default_scope)
    model = _trained(name, cfg.model, args)
    loader = cfg.train_dataloader
    loader.dataset.data_root = f'{args.data_root}/'
    loader.update(batch_size=BATCH, num_workers=0, persistent_workers=False)
    batch = next(iter(Runner.build_dataloader(loader, seed=0)))
    data = model.data_preprocessor(batch, True)
    image = data['inputs'][:1]

    def infer() -> None:
        model.eval()
        with torch.no_grad():
            model(image)

    def step() -> None:
        model.train()
        losses, _ = model.parse_losses(model(**data, mode='loss'))
        losses.backward()
        model.zero_grad()

    return {'inference': infer, 'training': step}


def _trained(name: str, cfg: dict, args: Namespace) -> nn.Module:
    from mmdet.registry import MODELS

    model = MODELS.build(cfg)
    path = next(path for path in (checkpoint_of(name, seed, args) for seed in args.seeds) if path.is_file())
    model.load_state_dict(torch.load(path, map_location='cpu', weights_only=False)['state_dict'])
    return model


def timed(names: list[str], args: Namespace) -> list[str]:
    """The rows of ``names`` that have a checkpoint, the control left out."""
    return [
        name
        for name in names
        if name in ROWS and name != BASELINE and any(checkpoint_of(name, seed, args).is_file() for seed in args.seeds)
    ]
