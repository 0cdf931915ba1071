"""Finds the runs that a comparison names and evaluates their checkpoints, once."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path

import mmdet
import numpy as np
import torch
from mmengine.config import Config
from mmengine.model import BaseModel
from tqdm import tqdm

from ..analysis.comparison import RunResult, compare, comparison_dict, comparison_markdown
from ..analysis.ground_truth import GroundTruth
from ..common.checkpoints import check_checkpoint, file_sha256, latest_checkpoint, read_checkpoint
from ..common.config_edit import is_remote
from ..common.console import say, warn, write_result
from ..cost.model_cost import count_macs, experts_in_words, parameter_counts
from ..dataset_check.dataset_paths import annotation_file
from ..errors import DataError, MoEConfigError
from ..probing.probe import detection_table
from ..running.launch import load_config
from ..running.trained_model import TestBatches, checkpoint_labels, load_trained_model, test_batches
from ..version import __version__

_CONFIG_AND_CHECKPOINT = re.compile(r'(?P<config>.+?\.(?:py|json|ya?ml)):(?P<checkpoint>.+)')
STORED_SUFFIX = '.eval.json'


@dataclass(frozen=True)
class RunSpec:
    """One run to compare.

    Attributes:
        name: what it is called; seeds share it.
        config: config file.
        checkpoint: checkpoint file.
    """

    name: str
    config: str
    checkpoint: str


def parse_run(text: str) -> RunSpec:
    """Reads ``NAME=WORK_DIR`` or ``NAME=CONFIG:CHECKPOINT``.

    A work folder stands for the config that the training left in it and for its last checkpoint: not for the best one,
    which was chosen by the images that it would be compared on.

    Raises:
        MoEConfigError: the text has another form, or the folder does not hold one config and a checkpoint.
    """
    name, equals, where = text.partition('=')
    if not (name.strip() and equals and where):
        raise MoEConfigError(f'{text}: expected NAME=WORK_DIR or NAME=CONFIG:CHECKPOINT')
    folder = Path(where).expanduser()
    match = _CONFIG_AND_CHECKPOINT.fullmatch(where)
    if folder.is_dir():
        configs = sorted(folder.glob('*.py'))
        if len(configs) != 1:
            listed = f'{len(configs)}: {", ".join(path.name for path in configs)}' if configs else 'none'
            raise MoEConfigError(f'{text}: expected one config in the folder, found {listed}; give CONFIG:CHECKPOINT')
        checkpoint = latest_checkpoint(str(folder))
        if checkpoint is None:
            raise MoEConfigError(f'{text}: no training has saved a checkpoint there (no file last_checkpoint)')
        return RunSpec(name.strip(), str(configs[0]), checkpoint)
    if match is None:
        raise MoEConfigError(f'{text}: there is not a folder {where}; expected NAME=WORK_DIR or NAME=CONFIG:CHECKPOINT')
    return RunSpec(name.strip(), match['config'], check_checkpoint(match['checkpoint'], text))


def compare_runs(
    runs: Sequence[str],
    *,
    data_root: str | None = None,
    out: Sequence[str] = (),
    fresh: bool = False,
    device: str | None = None,
    cfg_options: list[str] | None = None,
) -> None:
    """Evaluates runs and prints their table; the function behind ``compare_runs.py``.

    Args:
        runs: see :func:`parse_run`.
        data_root: folder that replaces the data folder of every config.
        out: .md and .json files to write.
        fresh: evaluate again what has a stored result.
        device: see :func:`.trained_model.analysis_device`.
        cfg_options: changes of every config.

    Raises:
        MoEDetError: a run cannot be found or evaluated, or the runs cannot be compared fairly.
    """
    specs = [parse_run(text) for text in runs]
    configs = [load_config(spec.config, cfg_options, data_root) for spec in specs]
    results = []
    for number, (spec, cfg) in enumerate(zip(specs, configs, strict=True), start=1):
        say(f'{number}/{len(specs)} {spec.name}: {spec.checkpoint}')
        results.append(evaluate_run(spec, cfg, device, fresh))
        compare(results)  # a comparison that is not fair ends here, not after the last evaluation
    rows = compare(results)
    for row in rows:
        seeds = [run.seed for run in row.runs if run.seed is not None]
        if len(set(seeds)) < len(seeds):
            warn(f'{row.name}: two of the checkpoints were trained with the same seed ({", ".join(map(str, seeds))})')
    text = comparison_markdown(rows)
    for path in out:
        write_result('--out', path, comparison_dict(rows) if path.endswith('.json') else text)
    say(f'\n{text}')


def evaluate_run(spec: RunSpec, cfg: Config, device: str | None = None, fresh: bool = False) -> RunResult:
    """Evaluates a checkpoint on the test set, or reuses the result stored next to it if nothing has changed since.

    Args:
        spec: the run.
        cfg: its config.
        device: see :func:`.trained_model.analysis_device`.
        fresh: evaluate again.
    """
    batches = test_batches(cfg, trained=checkpoint_labels(cfg, spec.checkpoint))
    annotations = annotation_file(cfg)
    shas = {'checkpoint_sha256': file_sha256(spec.checkpoint), 'annotations_sha256': file_sha256(annotations)}
    fingerprint = _fingerprint(cfg, shas)
    store = None if is_remote(spec.checkpoint) else Path(spec.checkpoint + STORED_SUFFIX)
    stored = None if fresh else _stored(store, fingerprint)
    if stored is not None:
        say(f'    stored result: {store}')
        own = {'name': spec.name, 'config': spec.config, 'checkpoint': spec.checkpoint, 'annotations': annotations}
        return RunResult(**{**stored, **own, 'input_size': tuple(stored['input_size'])})
    model = load_trained_model(cfg, spec.checkpoint, device, require_moe=False)
    params, active = parameter_counts(model)
    macs, size = count_macs(model, _first_image(batches))
    result = RunResult(
        name=spec.name,
        config=spec.config,
        checkpoint=spec.checkpoint,
        seed=_seed(spec.checkpoint),
        experts=experts_in_words(model),
        ap=_average_precision(model, batches, annotations),
        images=batches.num_images,
        annotations=annotations,
        params=params,
        active_params=active,
        macs=macs,
        input_size=size,
        **shas,
    )
    _store(store, {'fingerprint': fingerprint, 'result': dataclasses.asdict(result)})
    return result


def _fingerprint(cfg: Config, shas: dict[str, str]) -> str:
    parts = [
        cfg.model.to_dict(),
        cfg.test_dataloader.to_dict(),
        shas,
        __version__,
        mmdet.__version__,
        torch.__version__,
    ]
    return hashlib.sha256(json.dumps(parts, default=str, sort_keys=True).encode()).hexdigest()


def _stored(store: Path | None, fingerprint: str) -> dict | None:
    try:
        content = json.loads(store.read_text(encoding='utf-8')) if store is not None and store.is_file() else {}
    except (OSError, ValueError):
        return None
    fields = {field.name for field in dataclasses.fields(RunResult)}
    result = content.get('result') if isinstance(content, dict) and content.get('fingerprint') == fingerprint else None
    return result if isinstance(result, dict) and set(result) == fields else None


def _store(store: Path | None, content: dict) -> None:
    if store is None:
        return
    try:
        store.write_text(json.dumps(content, indent=2) + '\n', encoding='utf-8')
    except OSError as error:
        warn(f'{store} cannot be written ({error.strerror}): the result is not kept for another time')


def _seed(checkpoint: str) -> int | None:
    meta = read_checkpoint(checkpoint).get('meta') or {}
    seed = meta.get('seed') if isinstance(meta, dict) else None
    return seed if isinstance(seed, int) else None


def _first_image(batches: TestBatches) -> dict:
    _, batch = next(iter(batches))
    return {key: batch[key][:1] for key in ('inputs', 'data_samples')}


@torch.no_grad()
def _average_precision(model: BaseModel, batches: TestBatches, annotations: str) -> dict[str, float | None]:
    category_ids = getattr(batches.dataset, 'cat_ids', None)
    if not category_ids:
        raise DataError('the test set is not a CocoDataset: average precision by size needs COCO categories and areas')
    image_ids: list[Hashable] = []
    tables = []
    for ids, batch in tqdm(batches, desc='images', unit='batch', disable=None):
        results = [sample.pred_instances for sample in model.test_step(batch)]
        tables.append(detection_table(results, range(len(image_ids), len(image_ids) + len(ids))))
        image_ids += ids
    return GroundTruth(annotations, image_ids, category_ids).average_precision(np.concatenate(tables))
