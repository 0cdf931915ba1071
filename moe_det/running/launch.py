"""The functions behind the commands train, test and print-config."""

from __future__ import annotations

import itertools
import os
from argparse import Namespace
from collections.abc import Iterable, Mapping
from pathlib import Path

from mmdet.engine.hooks.utils import trigger_visualization_hook
from mmdet.evaluation import DumpDetResults
from mmdet.registry import RUNNERS
from mmdet.utils import setup_cache_size_limit_of_dynamo
from mmengine.config import Config
from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.registry import init_default_scope
from mmengine.runner import Runner

from ..called import command, short_path
from ..common.checkpoints import best_checkpoint, check_checkpoint, latest_checkpoint
from ..common.config_edit import enable_auto_scale_lr, set_data_root, set_seed
from ..common.config_file import merge_options, read_config
from ..common.console import local_rank, say, warn
from ..compat.checkpoint import refuse_unsafe_loading
from ..dataset_check.before_run import check_data
from ..errors import MoEConfigError
from ..robustness.resume_point import check_resumable, newest_resumable
from .amp import amp_for_this_device, enable_amp
from .ranks import leave_ranks, prepare_ranks
from .trained_model import checkpoint_labels, fill_exactly
from .tta import enable_tta
from .user_errors import run_main

__all__ = ['build_runner', 'check_data', 'load_config', 'print_config', 'run_main', 'test', 'train']

Options = Mapping | Iterable[str] | None


def load_config(
    path: str | os.PathLike,
    cfg_options: Options = None,
    data_root: str | os.PathLike | None = None,
    seed: int | None = None,
    work_dir: str | os.PathLike | None = None,
) -> Config:
    """Reads a config with the changes of the command line, in this order: options, data folder, seed, work folder.

    Args:
        path: a config file, or ``mmdet::...`` for one of mmdet's own.
        cfg_options: ``key=value`` texts, or a dict from dotted keys to values.
        data_root: folder that replaces the one of every dataset (see :func:`.config_edit.set_data_root`).
        seed: seed of the run.
        work_dir: folder for checkpoints and logs; else the config's own, else ``./work_dirs/<name of the config>``.

    Raises:
        MoEConfigError: the config or an option cannot be used.
    """
    cfg = read_config(path)
    merge_options(cfg, cfg_options)
    if cfg.get('default_scope') is None:
        cfg.default_scope = 'mmdet'
    init_default_scope(cfg.default_scope)
    if data_root is not None:
        set_data_root(cfg, data_root)
    if seed is not None:
        set_seed(cfg, seed)
    if work_dir is not None:
        cfg.work_dir = os.path.expanduser(os.fspath(work_dir))
    elif cfg.get('work_dir') is None:
        cfg.work_dir = os.path.join('.', 'work_dirs', Path(cfg.filename).stem)
    return cfg


_runners_built = itertools.count()


def build_runner(cfg: Config) -> Runner:
    """Builds mmengine's runner, or the one that the config names as ``runner_type``.

    From the second of a process on, experiment and visualizer get a number: mmengine names runs by the second and mmdet
    all visualizers alike, and two of one name would share what writes into the first one's work folder.

    Raises:
        MoEConfigError: the launcher's environment is missing, or the work folder cannot be made.
    """
    setup_cache_size_limit_of_dynamo()
    refuse_unsafe_loading()
    amp_for_this_device(cfg)
    if (cfg.get('randomness') or {}).get('deterministic'):
        # cuBLAS reads it at its start, and before torch 2.10 its products refuse to be deterministic without
        os.environ.setdefault('CUBLAS_WORKSPACE_CONFIG', ':4096:8')
    try:
        os.makedirs(cfg.work_dir, exist_ok=True)
    except OSError as error:
        raise MoEConfigError(f'work_dir {cfg.work_dir} cannot be made: {error.strerror}') from error
    if cfg.get('launcher', 'none') != 'none':
        prepare_ranks(cfg)
    if earlier := next(_runners_built):
        cfg.experiment_name = f'{cfg.get("experiment_name") or Path(cfg.filename or "run").stem}-{earlier + 1}'
        if isinstance(cfg.get('visualizer'), dict):
            cfg.visualizer.name = f'{cfg.visualizer.get("name", "visualizer")}-{earlier + 1}'
    return RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg)


def train(
    config: str,
    *,
    work_dir: str | None = None,
    resume: str | None = None,
    amp: bool = False,
    auto_scale_lr: bool = False,
    cfg_options: Options = None,
    data_root: str | None = None,
    seed: int | None = None,
    launcher: str = 'none',
    data_check: bool = True,
) -> int:
    """Trains a detector and says how to continue.

    Args:
        config: see :func:`load_config`, as ``work_dir``, ``cfg_options``, ``data_root`` and ``seed``.
        resume: ``'auto'`` continues from the last checkpoint of the work folder if there is one; else a checkpoint.
        amp: mixed precision (see :func:`.amp.enable_amp`).
        auto_scale_lr: scale the learning rate with the batch size.
        launcher: ``'none'``, ``'pytorch'``, ``'slurm'`` or ``'mpi'``.
        data_check: look at annotations and images first (see :func:`.data_check.check_data`).

    Returns:
        int: 0.

    Raises:
        MoEDetError: the config, the data or a checkpoint cannot be used.
        KeyboardInterrupt: after Ctrl-C, with a message that says how to continue.
    """
    cfg = load_config(config, cfg_options, data_root, seed, work_dir)
    cfg.launcher = launcher
    for key in ('train_dataloader', 'train_cfg', 'optim_wrapper'):
        if cfg.get(key) is None:
            raise MoEConfigError(f'{config}: training needs {key}, which the config does not have')
    if amp:
        enable_amp(cfg)
    if auto_scale_lr:
        enable_auto_scale_lr(cfg)
    _set_resume(cfg, resume)
    if data_check and local_rank() == 0:  # once per machine: parsing COCO's annotations takes seconds and gigabytes
        trained = checkpoint_labels(cfg, cfg.load_from) if cfg.get('load_from') else None
        check_data(cfg, ('train', 'val') if cfg.get('val_cfg') is not None else ('train',), trained)
    try:
        build_runner(cfg).train()
    except KeyboardInterrupt:
        last = latest_checkpoint(cfg.work_dir)
        saved = f'The last checkpoint is {last}; ' if last else f'No checkpoint was saved in {cfg.work_dir} yet; '
        how = 'the same command with --resume continues from it.' if last else 'the same command starts again.'
        raise KeyboardInterrupt(saved + how) from None
    leave_ranks()
    again = ['--data-root', data_root] if data_root is not None else []
    if cfg_options and not isinstance(cfg_options, Mapping):
        again += ['--cfg-options', *cfg_options]
    _say_what_next(config, cfg.work_dir, again)
    return 0


def _set_resume(cfg: Config, resume: str | None) -> None:
    if resume not in (None, 'auto'):
        cfg.resume, cfg.load_from = True, check_resumable(resume, '--resume')
    elif resume == 'auto' or (cfg.get('resume') and not cfg.get('load_from')):
        last = newest_resumable(cfg.work_dir, warn)
        if last is None:
            start = f'from the weights of {cfg.load_from}' if cfg.get('load_from') else 'from scratch'
            say(f'--resume: no checkpoint in {cfg.work_dir} yet, training starts {start}')
            cfg.resume = False
        else:
            cfg.resume, cfg.load_from = True, last
    if cfg.get('load_from'):
        check_checkpoint(cfg.load_from, 'load_from')


def _say_what_next(config: str, work_dir: str, again: list[str]) -> None:
    last, best = latest_checkpoint(work_dir), best_checkpoint(work_dir)
    kept = [f'{short_path(best)} (best)'] if best else []
    kept += [f'{short_path(last)} (last)'] if last else []
    say(f'\nTraining is done. Logs and checkpoints: {short_path(work_dir)}')
    say(f'Checkpoints: {", ".join(kept) or "none was saved (default_hooks.checkpoint)"}')
    newest = best or last
    if newest:
        say(f'Test it with:\n    {command("test", os.fspath(config), short_path(newest), *again)}')


def test(
    config: str,
    checkpoint: str,
    *,
    work_dir: str | None = None,
    out: str | None = None,
    show: bool = False,
    show_dir: str | None = None,
    wait_time: float = 2.0,
    tta: bool = False,
    cfg_options: Options = None,
    data_root: str | None = None,
    seed: int | None = None,
    launcher: str = 'none',
    data_check: bool = True,
) -> dict:
    """Evaluates a checkpoint on the config's test set.

    Args:
        config: see :func:`load_config`, as ``work_dir``, ``cfg_options``, ``data_root`` and ``seed``.
        checkpoint: the checkpoint, a file or a URL.
        out: file for the predictions, a pickle.
        show: show each image with its predictions in a window, for ``wait_time`` seconds.
        show_dir: folder for images with predictions, made below ``<work_dir>/<time stamp>``.
        tta: test-time augmentation (see :func:`.tta.enable_tta`).
        launcher: ``'none'``, ``'pytorch'``, ``'slurm'`` or ``'mpi'``.
        data_check: look at annotations and images first (see :func:`.data_check.check_data`).

    Returns:
        dict: the metrics.

    Raises:
        MoEDetError: the config, the data or the checkpoint cannot be used, or the weights do not fit the model.
    """
    if out is not None and not out.endswith(('.pkl', '.pickle')):
        raise MoEConfigError(f'--out {out}: expected a name that ends in .pkl or .pickle')
    cfg = load_config(config, cfg_options, data_root, seed, work_dir)
    cfg.launcher = launcher
    for key in ('test_dataloader', 'test_cfg', 'test_evaluator'):
        if cfg.get(key) is None:
            raise MoEConfigError(f'{config}: testing needs {key}, which the config does not have')
    cfg.load_from, cfg.resume = check_checkpoint(checkpoint, 'checkpoint'), False
    if show or show_dir:
        _enable_drawing(cfg, show, show_dir, wait_time)
    if tta:
        enable_tta(cfg)
    if data_check and (local_rank() == 0 or show or show_dir):  # who draws must know the labels' names
        check_data(cfg, ('test',), checkpoint_labels(cfg, cfg.load_from))
    runner = build_runner(cfg)
    model = runner.model
    while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
        model = model.module
    # mmengine only warns of weights that do not fit, and would evaluate random ones
    fill_exactly(model, cfg.load_from, config)
    if out is not None:
        runner.test_evaluator.metrics.append(DumpDetResults(out_file_path=out))
    metrics = runner.test()
    leave_ranks()
    if out is not None:
        say(f'Predictions: {out}')
    return metrics


def _enable_drawing(cfg: Config, show: bool, show_dir: str | None, wait_time: float) -> None:
    if 'visualization' not in (cfg.get('default_hooks') or {}):
        raise MoEConfigError(
            '--show and --show-dir need the hook that draws in default_hooks: '
            "visualization=dict(type='DetVisualizationHook')"
        )
    trigger_visualization_hook(cfg, Namespace(show=show, show_dir=show_dir, wait_time=wait_time))


def print_config(
    config: str, *, cfg_options: Options = None, data_root: str | None = None, save_path: str | None = None
) -> None:
    """Prints the config as a run would use it, and saves it where asked.

    Args:
        config: see :func:`load_config`, as ``cfg_options`` and ``data_root``.
        save_path: a .py, .json, .yml or .yaml file; its folder is made.

    Raises:
        MoEConfigError: the config cannot be read, or ``save_path`` cannot be written.
    """
    if save_path is not None and not save_path.endswith(('.py', '.json', '.yml', '.yaml')):
        raise MoEConfigError(f'--save-path {save_path}: expected a name that ends in .py, .json, .yml or .yaml')
    cfg = read_config(config)
    merge_options(cfg, cfg_options)
    if data_root is not None:
        set_data_root(cfg, data_root)
    say(cfg.pretty_text)
    if save_path is not None:
        try:
            os.makedirs(os.path.dirname(os.path.abspath(save_path)), exist_ok=True)
            cfg.dump(save_path)
        except OSError as error:
            raise MoEConfigError(f'--save-path {save_path}: cannot be written: {error.strerror}') from error
