"""One of the two processes of test_two_ranks.py: python two_rank_worker.py RANK PORT DATA WORK_DIR."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from mmengine.config import Config
from mmengine.hooks import Hook
from running.detector_runs import CASES, evaluated, trained
from small_runs import EPOCHS, Seen, run_of

from moe_det.errors import MoEDetError
from moe_det.running.ranks import prepare_ranks


class Poisonous(Seen):
    """Its loss is NaN while ``poisoned``."""

    poisoned = False

    def forward(self, inputs, data_samples, mode='tensor'):
        output = super().forward(inputs, data_samples, mode)
        return {key: value * float('nan') for key, value in output.items()} if self.poisoned else output


class Poison(Hook):
    """Spoils an iteration of the second process."""

    priority = 'LOWEST'

    def __init__(self, iteration: int) -> None:
        self.iteration = iteration

    def before_train_iter(self, runner, batch_idx, data_batch=None) -> None:
        runner.model.module.poisoned = runner.rank == 1 and runner.iter == self.iteration


def run(folder: Path, work_dir: Path, *hooks, every: int = 1) -> dict:
    """Trains with a step ``every`` so many iterations until an error; returns it and what the model saw."""
    cfg = Config(dict(launcher='pytorch', model_wrapper_cfg=None))
    prepare_ranks(cfg)
    step = dict(optim_wrapper=dict(optimizer=dict(type='SGD', lr=1.0), accumulative_counts=every))
    runner = run_of(folder, work_dir, *hooks, model=Poisonous(), launcher='pytorch', loop=EPOCHS, cfg=cfg, **step)
    result = dict(kind='', message='')
    try:
        runner.train()
    except MoEDetError as error:
        result = dict(kind=type(error).__name__, message=str(error))
    model = runner.model.module
    files = sorted(path.name for path in work_dir.iterdir())
    return dict(result, batches=model.batches, files=files, sound=bool(model.marks.isfinite().all()), iter=runner.iter)


def main(rank: str, port: str, folder: str, work_dir: str) -> None:
    """Runs the cases one after the other and writes what happened."""
    os.environ.update(RANK=rank, WORLD_SIZE='2', LOCAL_RANK=rank, MASTER_ADDR='127.0.0.1', MASTER_PORT=port)
    data, work = Path(folder), Path(work_dir)
    results = {
        f'limit {limit}': run(data, work / f'limit{limit}', dict(type='SkipBadImagesHook', max_images=limit))
        for limit in (4, 3)
    }
    hooks = dict(type='SkipBadImagesHook'), dict(type='FiniteHook')
    results['nan'] = run(data, work / 'nan', *hooks, Poison(3))
    # between steps no gradient tells one process of the other's fault
    results['nan between steps'] = run(data, work / 'between', *hooks, Poison(1), every=4)
    (work / f'rank{rank}.json').write_text(json.dumps(results))
    trainings = {
        name: trained(work, f'{name} of two', rank=int(rank), num_ranks=2, **case) for name, case in CASES.items()
    }
    trainings['evaluation'] = evaluated(work, 'evaluation of two', rank=int(rank), num_ranks=2)
    torch.save(trainings, work / f'rank{rank}.pt')


if __name__ == '__main__':
    main(*sys.argv[1:])
