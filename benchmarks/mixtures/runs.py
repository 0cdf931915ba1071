"""Trains and measures rows of benchmarks/reproduce_expert_specialization.py in this process."""

from __future__ import annotations

import gc
import json
import logging
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from common import ROOT
from common.record import origin, write
from common.runs import fingerprint
from mmengine.logging import MessageHub, MMLogger
from mmengine.registry import DefaultScope
from mmengine.runner import Runner
from mmengine.visualization import Visualizer

from moe_det.classification.metric import ClassificationMetric
from moe_det.common.software import cores
from moe_det.running import launch

from .published import DATA_SETS

CONFIGS = ROOT / 'configs' / 'classification'
CONSTRAINT = 'model.moe.constraint'
PAIRS = {f'{CONSTRAINT}.normalisation': 'pairs', f'{CONSTRAINT}.distance_scale': 'largest'}
TWENTY_EXPERTS = {'model.moe.num_experts': 20}
# what differs from the row's config; a distilled row starts from a run of its own where the published setting differs
CHANGES = {
    'original_similarity_pairs': ('original_similarity', PAIRS),
    'attentive_similarity_pairs': ('attentive_similarity', {**PAIRS, f'{CONSTRAINT}.beta_d': 0.01}),
    'twenty_attentive': ('attentive_importance', TWENTY_EXPERTS),
    'twenty_distilled': ('distilled_importance', TWENTY_EXPERTS),
    'twenty_distilled_kl': ('distilled_importance', {**TWENTY_EXPERTS, 'model.moe.gate.kl_weight': 1.0}),
}
SOURCES = {
    ('mnist', 'distilled_importance'): ('attentive_importance', {f'{CONSTRAINT}.weight': 0.4}),
    ('mnist', 'distilled_similarity'): ('attentive_similarity', {f'{CONSTRAINT}.beta_d': 1e-3}),
    ('fashion_mnist', 'distilled_importance'): ('attentive_importance', {f'{CONSTRAINT}.weight': 1.0}),
    ('fashion_mnist', 'distilled_similarity'): ('attentive_similarity', {}),
}
SOURCES |= {
    (data_set, row): ('twenty_attentive', {})
    for data_set in DATA_SETS
    for row in ('twenty_distilled', 'twenty_distilled_kl')
}
WEIGHTS = 'weights.pth'
MEASURES = ('error', 'I_EY', 'H_s', 'H_u')


def config_of(name: str) -> tuple[str, dict[str, object]]:
    """Config of a row, without the data set's name, and what is changed in it."""
    return CHANGES.get(name, (name, {}))


def source_of(data_set: str, row: str) -> tuple[str, str, dict[str, object]] | None:
    """Name, config and changes of the run that a row starts from."""
    if (data_set, row) not in SOURCES:
        return None
    name, more = SOURCES[data_set, row]
    config, changes = config_of(name)
    return name, config, {**changes, **more}


def fingerprint_of(data_set: str, row: str) -> str:
    """Digest of a row's config and, where it starts from another run, of that one's."""
    config, changes = config_of(row)
    source = source_of(data_set, row)
    before = [fingerprint(CONFIGS / f'{data_set}_{source[1]}.py', source[2])] if source else []
    return fingerprint(CONFIGS / f'{data_set}_{config}.py', changes, *before)


class Bench:
    """Trains rows; keeps what is finished below the work folder.

    Args:
        data_root: folder of the data sets.
        work_dir: for one folder per run, with its log, its result ``run.json`` and, of a source of distillation, its
            weights.
        epochs: of every run.
        command: for the record.
    """

    def __init__(self, data_root: Path | str, work_dir: Path | str, epochs: int, command: str) -> None:
        self.data_root, self.epochs, self.command = data_root, epochs, command
        self.folder = Path(work_dir) / f'{epochs}_epochs'

    def row(self, data_set: str, row: str, seed: int) -> dict:
        """Trains and measures a row unless that is done; a distilled row after its source.

        Returns:
            What the record keeps, all values plain.

        Raises:
            MoEDetError: the data are missing or damaged.
        """
        source, load_from = source_of(data_set, row), None
        if source is not None:
            name, config, changes = source
            digest = fingerprint(CONFIGS / f'{data_set}_{config}.py', changes)
            folder, _ = self._run(data_set, name, config, seed, changes, digest, keep_weights=True)
            load_from = folder / WEIGHTS
        config, changes = config_of(row)
        is_source = any(key[0] == data_set and of == (row, {}) for key, of in SOURCES.items())
        return self._run(data_set, row, config, seed, changes, fingerprint_of(data_set, row), is_source, load_from)[1]

    def _run(
        self,
        data_set: str,
        row: str,
        config: str,
        seed: int,
        changes: dict[str, object],
        digest: str,
        keep_weights: bool = False,
        load_from: Path | None = None,
    ) -> tuple[Path, dict]:
        """Folder and result of a run; ``digest`` tells it from runs of the same name with other configs."""
        changed = ''.join(f'_{key.rpartition(".")[2]}_{value}' for key, value in changes.items())
        name = row if row in CHANGES else f'{row}{changed}'
        folder = self.folder / data_set / name / digest / f'seed_{seed}'
        finished = folder / 'run.json'
        if finished.is_file() and ((folder / WEIGHTS).is_file() or not keep_weights):
            return folder, json.loads(finished.read_text(encoding='utf-8'))
        print(f'{DATA_SETS[data_set]}, {name}, seed {seed}: training, {self.epochs} epochs', flush=True)
        begin, begin_cpu = time.perf_counter(), time.process_time()
        with no_traces():
            found = self._train(f'{data_set}_{config}', seed, folder, changes, keep_weights, load_from)
        threads = torch.get_num_threads()
        found = {
            'data_set': data_set,
            'row': name,
            'seed': seed,
            'epochs': self.epochs,
            'changes': changes,
            'fingerprint': digest,
            **found,
            'seconds': round(time.perf_counter() - begin, 1),
            'cpu_seconds': round(time.process_time() - begin_cpu, 1),
            **origin(self.command),
        }
        found['machine'] += f', {threads} thread' + 's' * (threads > 1)
        write(finished, found)
        return folder, found

    def _train(
        self, config: str, seed: int, folder: Path, changes: dict, keep_weights: bool, load_from: Path | None
    ) -> dict[str, float | None]:
        cfg = launch.load_config(CONFIGS / f'{config}.py', changes, self.data_root, seed, folder)
        test_loader, cfg.train_cfg.max_epochs = cfg.test_dataloader, self.epochs
        for split in ('val', 'test'):  # the published numbers are those after the last epoch
            cfg[f'{split}_dataloader'] = cfg[f'{split}_cfg'] = cfg[f'{split}_evaluator'] = None
        cfg.default_hooks.checkpoint = None
        cfg.optim_wrapper.optimizer.fused = True  # one kernel for all parameters
        cfg.log_level = 'ERROR'
        cfg.load_from = None if load_from is None else str(load_from)
        launch.check_data(cfg, ('train',))
        runner = launch.build_runner(cfg)
        runner.train()
        found = {}
        train_loader = {**test_loader, 'dataset': cfg.train_dataloader.dataset}
        for name, loader in (('train', train_loader), ('test', test_loader)):
            measured = measure(runner, loader)
            found |= {f'{name}_{key}': measured.get(key) for key in MEASURES}
        if keep_weights:
            unfinished = folder / f'{WEIGHTS}.unfinished'
            torch.save({'state_dict': runner.model.state_dict()}, unfinished)
            unfinished.replace(folder / WEIGHTS)
        return found


def start_worker(jobs: int) -> None:
    """Readies a process that is one of ``jobs``: it takes its share of the cores, and Ctrl-C ends it silently."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    torch.set_num_threads(max(1, cores() // jobs))


def train_chain(bench: Bench, data_set: str, rows: list[str], seed: int) -> list[dict]:
    """Results of rows, one after the other."""
    return [bench.row(data_set, row, seed) for row in rows]


@torch.no_grad()
def measure(runner: Runner, loader: dict) -> dict[str, float]:
    """``error`` and, of a model with a gate, ``I_EY``, ``H_s``, ``H_u`` over a whole data set."""
    loader = runner.build_dataloader(loader)
    metric = ClassificationMetric()
    metric.dataset_meta = loader.dataset.metainfo
    runner.model.eval()
    for batch in loader:
        metric.process(batch, runner.model.val_step(batch))
    return metric.evaluate(len(loader.dataset))


@contextmanager
def no_traces() -> Iterator[None]:
    """Takes back what a runner leaves in the process: loggers with their open files, message hubs, visualisers."""
    managers = (DefaultScope, MessageHub, MMLogger, Visualizer)
    before = [dict(manager._instance_dict) for manager in managers]
    try:
        yield
    finally:
        for manager, instances in zip(managers, before, strict=True):
            for name, instance in list(manager._instance_dict.items()):
                if name in instances:
                    continue
                if isinstance(instance, logging.Logger):
                    for handler in list(instance.handlers):
                        instance.removeHandler(handler)
                        handler.close()
                if isinstance(instance, Visualizer):
                    instance.close()
            manager._instance_dict.clear()
            manager._instance_dict.update(instances)
        gc.collect()  # runner and hooks hold each other
