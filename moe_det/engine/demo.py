"""The demo: synthetic data, a few minutes of training, an evaluation, what the experts specialise in, a short table."""

from __future__ import annotations

import hashlib
import json
import time
from pathlib import Path

from mmengine.config import Config

from ..datasets.shapes import FORMAT
from ..routing.metrics import Utilisation
from .checkpoints import latest_checkpoint
from .console import say
from .data_check import check_data
from .launch import build_runner, load_config
from .moe_hook import MoEHook, utilisation_table
from .shapes_data import make_shapes_data
from .size_specialization import RESULTS_NAME, AnalysisOptions, analyse

METRICS = ('bbox_mAP', 'bbox_mAP_s', 'bbox_mAP_m', 'bbox_mAP_l')


def run_demo(config: str, work_dir: str, data_root: str, train: int, val: int) -> dict:
    """Makes the data, trains, evaluates, analyses, and prints and writes a summary; keeps whatever is already there.

    Args:
        config: config file to train.
        work_dir: folder for checkpoints, logs and ``summary.json``.
        data_root: folder of the shapes; made when it is not there.
        train: number of training images.
        val: number of images to evaluate and to analyse.

    Returns:
        The contents of ``summary.json``: ``bbox_mAP`` and its size parts, ``train_seconds``, ``config``,
        ``checkpoint``, ``utilisation`` per layer. The report on size specialisation lies beside it.

    Raises:
        MoEDetError: the data cannot be made, or the config does not fit.
    """
    say(f'1/4 data: {data_root}')
    make_shapes_data(data_root, train=train, val=val)
    cfg = load_config(config, data_root=data_root, work_dir=work_dir, seed=0)  # the same demo each time
    check_data(cfg, ('train', 'test'))
    fingerprint = hashlib.sha256(f'{cfg.pretty_text} {train} {val} {FORMAT}'.encode()).hexdigest()[:16]
    folder = Path(work_dir)
    trained = _trained(cfg, folder, fingerprint)
    summary = _evaluated(cfg, folder, fingerprint, trained)
    report = _analysed(config, data_root, folder, fingerprint, trained)
    say(_report(summary, folder, data_root, report))
    return summary


def _stored(path: Path, fingerprint: str) -> dict | None:
    """Reads a stage's result if it belongs to this config."""
    if not path.is_file():
        return None
    stored = json.loads(path.read_text(encoding='utf-8'))
    current = stored.get('fingerprint') == fingerprint and Path(stored.get('checkpoint', '')).is_file()
    return stored if current else None


def _store(path: Path, result: dict) -> None:
    path.write_text(json.dumps(result, indent=2) + '\n', encoding='utf-8')


def _trained(cfg: Config, folder: Path, fingerprint: str) -> dict:
    """Trains, unless the same config was trained here before; continues an interrupted training."""
    record = folder / 'trained.json'
    stored = _stored(record, fingerprint)
    if stored is not None:
        say(f'2/4 training: already done, {stored["checkpoint"]} (delete {folder} to start over)')
        return stored
    started = folder / 'started.txt'
    same_run = started.is_file() and started.read_text(encoding='utf-8') == fingerprint
    training = cfg.copy()
    last = latest_checkpoint(str(folder)) if same_run else None
    if last is not None:
        training.resume, training.load_from = True, last
    # evaluated once, afterwards
    training.train_cfg.val_begin = training.train_cfg.max_epochs + 1
    say(f'2/4 training: {Path(cfg.filename).name}' + (f', continued from {last}' if last else ''))
    runner = build_runner(training)
    started.write_text(fingerprint, encoding='utf-8')
    begin = time.perf_counter()
    runner.train()
    result = {
        'fingerprint': fingerprint,
        'train_seconds': round(time.perf_counter() - begin, 1),
        'checkpoint': latest_checkpoint(str(folder)),
    }
    _store(record, result)
    return result


def _evaluated(cfg: Config, folder: Path, fingerprint: str, trained: dict) -> dict:
    """Evaluates the checkpoint, unless that was done before."""
    record = folder / 'summary.json'
    stored = _stored(record, fingerprint)
    if stored is not None:
        say(f'3/4 evaluation: already done, {record}')
        return stored
    say('3/4 evaluation')
    testing = cfg.copy()
    testing.load_from, testing.resume = trained['checkpoint'], False
    runner = build_runner(testing)
    metrics = runner.test()
    hook = next((hook for hook in runner.hooks if isinstance(hook, MoEHook)), None)
    result = {name: metrics[f'coco/{name}'] for name in METRICS}
    result |= {
        'train_seconds': trained['train_seconds'],
        'config': cfg.filename,
        'checkpoint': trained['checkpoint'],
        'fingerprint': fingerprint,
        'utilisation': {} if hook is None else {layer: used.to_dict() for layer, used in hook.utilisation.items()},
    }
    _store(record, result)
    return result


def _analysed(config: str, data_root: str, folder: Path, fingerprint: str, trained: dict) -> Path:
    """Analyses which experts fire for which sizes, unless that was done before; returns the report's path."""
    out_dir = folder / 'size_specialization'
    record, report = folder / 'analysed.json', out_dir / 'report.html'
    if _stored(record, fingerprint) is not None and report.is_file() and (out_dir / RESULTS_NAME).is_file():
        say(f'4/4 size specialisation: already done, {report}')
        return report
    say('4/4 size specialisation: routes swapped between images, every expert forced and knocked out')
    # the page shows every figure; files of each would take a quarter of the time
    options = AnalysisOptions(data_root=data_root, out_dir=str(out_dir), command='make demo', figures=False)
    analyse(config, [trained['checkpoint']], options)
    _store(record, {'fingerprint': fingerprint, 'checkpoint': trained['checkpoint']})
    return report


def _report(summary: dict, folder: Path, data_root: str, report: Path) -> str:
    """The closing table and what to do next."""
    layers = {layer: Utilisation(**used) for layer, used in summary['utilisation'].items()}
    config = summary['config']
    return '\n'.join(
        [
            '',
            '   AP    AP_S   AP_M   AP_L   (COCO, all IoU thresholds)   training',
            ' '.join(f'{summary[name]:6.3f}' for name in METRICS) + f'{"":31}{summary["train_seconds"]:.0f} s',
            '',
            utilisation_table(layers),
            '',
            f'Summary: {folder / "summary.json"}    Checkpoint: {summary["checkpoint"]}',
            f'Which experts fire for small and for large objects: open {report} in a browser',
            'Next:',
            f'  python tools/test.py {config} {summary["checkpoint"]} --data-root {data_root} --show-dir pictures',
            f'  python tools/train.py configs/shapes/retinanet_moe_hard.py --data-root {data_root}',
            f'  python tools/train.py configs/shapes/retinanet_dense.py --data-root {data_root}',
            '  python tools/train.py configs/retinanet_moe_soft.py --data-root /path/to/coco',
            '  README.md shows how to add experts to a config of your own.',
        ]
    )
