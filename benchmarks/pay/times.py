"""Measured time of each row's detector over that of the dense one, on the images that it was trained for."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import torch
from speed.clock import interleave, ratio
from torch import nn

from .runs import config_of, folder_of
from .settings import BASELINE, BATCH, Table

if TYPE_CHECKING:
    from mmengine.hooks import Hook

ROUNDS, WARM_UP = 20, 4
COMPUTING = ('RoutingConsistencyHook', 'DenseTeacherHook')  # a forward of the gates; averages and their forward


def times_over_dense(table: Table, names: list[str], args: Namespace) -> Iterator[tuple[str, dict[str, dict]]]:
    """Times one image and one training step of every row beside the dense detector, in turn.

    Routes are real images' routes in a checkpoint of the row's first seed that has one, of the end or on the way there;
    without experts any weights take the same time.

    Args:
        table: with the rows.
        names: rows that have a finished run.
        args: of the command line.

    Yields:
        Row, and ``'inference'`` (one image) and ``'training'`` (forward and backward of a batch) -> ratio to dense.
    """
    torch.set_num_threads(args.threads or torch.get_num_threads())
    dense = None
    for name in names:
        dense = dense or _runs_of(table, BASELINE, args)
        own, found = _runs_of(table, name, args), {}
        for kind in ('inference', 'training'):
            times = interleave({'dense': dense[kind], 'own': own[kind]}, ROUNDS, WARM_UP, 'cpu')
            found[kind] = one = ratio(times['own']['total'], times['dense']['total'])
            print(f'{name}: {kind} {one["median"]:.2f} of dense', flush=True)
        yield name, found


def _runs_of(table: Table, name: str, args: Namespace) -> dict[str, Callable[[], None]]:
    from mmengine.registry import init_default_scope
    from mmengine.runner import Runner

    from moe_det.routing.collection import attach_collection

    cfg = config_of(table, name)
    init_default_scope(cfg.default_scope)
    model = _trained(table, name, cfg.model, args)
    attach_collection(model)  # as MoEHook does
    run = SimpleNamespace(model=model, epoch=0, iter=0, seed=0)  # what these hooks read of a runner
    hooks = _hooks_of(cfg.get('custom_hooks') or (), run)
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
        for hook in hooks:
            hook.after_train_iter(run, 0)
        model.zero_grad()

    return {'inference': infer, 'training': step}


def _hooks_of(configs: Iterable[dict], run: SimpleNamespace) -> list[Hook]:
    """The hooks of a config that compute something in every step, attached to the model."""
    from mmengine.registry import HOOKS

    hooks = [HOOKS.build(cfg) for cfg in configs if cfg['type'] in COMPUTING]
    for hook in hooks:
        hook.before_run(run)
    return hooks


def _trained(table: Table, name: str, cfg: dict, args: Namespace) -> nn.Module:
    from mmdet.registry import MODELS

    model = MODELS.build(cfg)
    for path in _checkpoints(table, name, args)[:1]:
        model.load_state_dict(torch.load(path, map_location='cpu', weights_only=False)['state_dict'])
    return model


def _checkpoints(table: Table, name: str, args: Namespace) -> list[Path]:
    folders = [folder_of(table, name, seed, args) for seed in args.seeds]
    return [
        max(found, key=lambda path: path.stat().st_mtime) for one in folders if (found := [*one.glob('epoch_*.pth')])
    ]


def timed(table: Table, names: list[str], args: Namespace) -> list[str]:
    """The rows of ``names`` that have a checkpoint, or that take the same time without: those that route nothing.

    The control is left out.
    """
    return [
        name
        for name in names
        if name in table.rows and name != BASELINE
        if table[name].control or _checkpoints(table, name, args)
    ]
