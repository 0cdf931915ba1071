"""Runs of benchmarks/experts_and_data.py: autoencoders with so many decoders, trained on so much of a data set."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from common.record import origin
from common.runs import fingerprint

from moe_det.common.runner_parts import plain_model
from moe_det.running import launch

from .runs import CONFIGS, no_traces

TRAINING_IMAGES = 60_000  # of MNIST and Fashion-MNIST
MEASURES = ('squared_error', 'active_experts', 'squared_error_of_all')


@dataclass(frozen=True)
class Setting:
    """What one run trains.

    Attributes:
        data_set: ``mnist`` or ``fashion_mnist``.
        experts: decoders.
        share: percent of the training images.
        epochs: of the run.
        seed: of the run.
    """

    data_set: str
    experts: int
    share: float
    epochs: int
    seed: int

    @property
    def config(self) -> Path:
        """The config that it changes."""
        return CONFIGS / f'{self.data_set}_vae.py'

    @property
    def changes(self) -> dict[str, object]:
        """What it changes there."""
        return {
            'model.moe.num_experts': self.experts,
            'model.moe.top_k': self.experts,
            'model.moe.soft_mixture': self.experts > 1,
            'train_dataloader.dataset.subset': round(self.share / 100 * TRAINING_IMAGES),
            'train_cfg.max_epochs': self.epochs,
        }

    @property
    def digest(self) -> str:
        """Tells the config from another one of the same name."""
        return fingerprint(self.config, self.changes)


def trained(setting: Setting, data_root: Path | None, work_dir: Path, command: str) -> dict:
    """Trains and tests one run.

    Returns:
        What the record keeps, all values plain.

    Raises:
        MoEDetError: the data are missing or damaged.
    """
    begin = time.perf_counter()
    with no_traces():
        measured = _train(setting, data_root, work_dir)
    return {
        **vars(setting),
        'fingerprint': setting.digest,
        **{key: float(measured[key]) for key in MEASURES},
        'seconds': round(time.perf_counter() - begin, 1),
        **origin(command),
    }


def _train(setting: Setting, data_root: Path | None, work_dir: Path) -> dict[str, float]:
    folder = work_dir / f'{setting.data_set}_{setting.experts}_{setting.share:g}_{setting.epochs}_{setting.seed}'
    cfg = launch.load_config(setting.config, setting.changes, data_root, setting.seed, folder)
    for key in ('val_dataloader', 'val_cfg', 'val_evaluator'):  # the last epoch counts
        cfg[key] = None
    cfg.default_hooks.checkpoint = None
    cfg.log_level = 'ERROR'
    launch.check_data(cfg, ('train', 'test'))
    runner = launch.build_runner(cfg)
    runner.train()
    measured = runner.test()
    # all decoders, mixed as in training: what one of them loses, the gate has not learned to decide
    plain_model(runner).test_top_k = None
    return {**measured, 'squared_error_of_all': runner.test()['squared_error']}
