"""Behind the command report: from config and checkpoints to the reports."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ..analysis.comparison import refuse_equal
from ..analysis.seeds_summary import across_seeds
from ..common.atomic_file import write_atomically
from ..common.checkpoints import check_checkpoint, weights_sha256
from ..common.console import local_rank, say
from ..common.share import Share
from ..errors import DataError
from ..figures import write_figures
from ..report import console_table, write_report
from ..running.launch import load_config
from ..running.ranks import ranks_with_files
from ..running.trained_model import analysis_device
from .checkpoint_analysis import AnalysisOptions, analyse_checkpoint

RESULTS_NAME = 'size_specialization.json'


def analyse(config: str, checkpoints: Sequence[str], options: AnalysisOptions) -> dict | None:
    """Analyses one or several checkpoints of a config and writes a report on each.

    With several (runs of different seeds) the report of the first, in ``out_dir``, also tells what they have in common,
    and each other one has its own folder ``seed_2``, ``seed_3``, ... below.

    Args:
        config: config file.
        checkpoints: files or URLs.
        options: of the report.

    Returns:
        The results of the first checkpoint, as ``size_specialization.json`` has them; None in processes of another rank
        than 0.

    Raises:
        MoEDetError: config, checkpoint, data or a folder cannot be used.
    """
    with ranks_with_files(options.launcher) as share:
        return _analyse(config, checkpoints, options, share)


def _analyse(config: str, checkpoints: Sequence[str], options: AnalysisOptions, share: Share) -> dict | None:
    device = analysis_device(options.device)
    if device.type == 'cuda' and device.index is None and share.processes > 1:
        options = replace(options, device=f'cuda:{local_rank()}')
    cfg = load_config(config, options.cfg_options, options.data_root)
    folder = Path(options.out_dir or Path(cfg.work_dir) / 'size_specialization')
    _writable(folder)
    checkpoints = [check_checkpoint(checkpoint, 'checkpoint') for checkpoint in checkpoints]
    refuse_equal_weights(checkpoints)
    every = []
    for number, checkpoint in enumerate(checkpoints, start=1):
        target = folder if number == 1 else folder / f'seed_{number}'
        _writable(target)
        if len(checkpoints) > 1:
            say(f'checkpoint {number} of {len(checkpoints)}: {checkpoint}')
        found = analyse_checkpoint(cfg, checkpoint, target, options, share)
        if found is None:
            continue
        every.append(found)
        if number > 1:
            _write(found[0], target, options.figures)
    if share.rank:
        return None
    results = every[0][0]
    if len(every) > 1:
        results['seeds'] = across_seeds(*zip(*every, strict=True))
    _write(results, folder, options.figures)
    say(console_table(results))
    say(f'Report: {folder / "report.html"}    Numbers: {folder / RESULTS_NAME}')
    return results


def _writable(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        trial = folder / '.trial'
        trial.write_text('', encoding='utf-8')
        trial.unlink()
    except OSError as error:
        raise DataError(f'--out-dir {folder} cannot be written: {error.strerror}') from error


def _write(results: dict, folder: Path, figures: bool) -> None:
    write_atomically(folder / RESULTS_NAME, json.dumps(results, indent=1, allow_nan=False) + '\n')
    if figures:
        write_figures(results, folder)
    write_report(results, folder)


def refuse_equal_weights(checkpoints: Sequence[str]) -> None:
    """Refuses checkpoints that are to stand for several trainings but hold the same weights.

    Args:
        checkpoints: files or URLs.

    Raises:
        DataError: two hold the same weights, under whatever names.
        CheckpointError: one cannot be read.
    """
    if len(checkpoints) > 1:
        refuse_equal([(path, weights_sha256(path)) for path in checkpoints])
