"""What a change of a checkpoint costs on the test set."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from copy import deepcopy
from numbers import Real

from mmengine.config import Config

from ..dataset_check.before_run import check_data
from ..running.launch import build_runner
from ..running.trained_model import checkpoint_labels


def test_metrics(cfg: Config, checkpoint: str) -> dict[str, float]:
    """Tests a checkpoint as the command test does and returns its metrics; no file stays.

    Args:
        cfg: a config that fits the checkpoint; it is not changed.
        checkpoint: file or URL.
    """
    cfg = deepcopy(cfg)
    check_data(cfg, ('test',), checkpoint_labels(cfg, checkpoint))
    cfg.load_from, cfg.resume = checkpoint, False
    with tempfile.TemporaryDirectory() as folder:
        cfg.work_dir = folder
        # mmengine keeps logs and visualizers of a process by name, with the folder that they began in
        cfg.experiment_name = os.path.basename(folder)
        if cfg.get('visualizer') is not None:
            cfg.visualizer = dict(cfg.visualizer, name=cfg.experiment_name)
        metrics = build_runner(cfg).test()
    return {key: float(x) for key, x in metrics.items() if isinstance(x, Real) and not isinstance(x, bool)}


test_metrics.__dict__['__test__'] = False  # no test, whatever pytest thinks of the name


def metrics_table(before: Mapping[str, float], after: Mapping[str, float]) -> str:
    """The metrics before and after as a plain-text table."""
    width = max((len(name) for name in before), default=0)
    lines = [f'{"":{width}}  {"before":>8} {"after":>8} {"change":>8}']
    for name, value in before.items():
        if name in after:
            lines.append(f'{name:{width}}  {value:8.4f} {after[name]:8.4f} {after[name] - value:+8.4f}')
    return '\n'.join(lines)
