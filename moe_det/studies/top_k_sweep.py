"""Evaluates a checkpoint with every number of active experts: K = 1 ... E."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

from ..common.checkpoints import check_checkpoint, file_sha256
from ..common.console import check_result, say, write_result
from ..common.runner_parts import plain_model
from ..dataset_check.before_run import check_data
from ..errors import MoEConfigError
from ..probing.conditions import with_top_k
from ..routing.intervention import intervene
from ..routing.router import find_routers
from ..running.launch import build_runner, load_config
from ..running.trained_model import load_trained_model


def sweep_top_k(
    config: str,
    checkpoint: str,
    *,
    top_k: Sequence[int] | None = None,
    data_root: str | None = None,
    json_file: str | None = None,
    cfg_options: list[str] | None = None,
) -> dict:
    """Tests a checkpoint with one K after the other and prints the metrics; the function behind ``sweep_top_k.py``.

    Each K is a test as the command test runs it, with the K best experts of the gate's logits instead of the trained
    number, in every layer (a layer with fewer experts uses all). Weights are normalised as they were in training: for a
    model that was trained with K >= 2 they sum to 1 for every K, also for K = 1 (arXiv 2204.10598).

    Args:
        config: a config file of a detector or classifier.
        checkpoint: its weights.
        top_k: the K to test; None takes 1 to the largest number of experts of any layer.
        data_root: folder that replaces the config's data folder.
        json_file: writes the result there.
        cfg_options: changes of the config.

    Returns:
        ``config``, ``checkpoint``, ``sha256``, ``trained`` (top_k and num_experts by layer) and ``results``: for each K
        a dict with ``top_k``, ``trained`` (whether it is the model's own) and ``metrics``.

    Raises:
        MoEDetError: the config, the checkpoint or the data cannot be used, or a K that no layer has.
    """
    check_result('--json', json_file)
    cfg = load_config(config, cfg_options, data_root)
    for key in ('test_dataloader', 'test_cfg', 'test_evaluator'):
        if cfg.get(key) is None:
            raise MoEConfigError(f'{config}: testing needs {key}, which the config does not have')
    # a run only warns of weights that are missing; here they are an error
    model = load_trained_model(cfg, checkpoint, 'cpu')
    routers = find_routers(model)
    for name, router in routers.items():
        if router.slots > 1:
            raise MoEConfigError(
                f'{config}: {name} has {router.slots} shards of {router.copies} copies: every row runs one copy of '
                'each shard, so there is not a number of experts to change'
            )
    trained = {name: dict(top_k=r.top_k, num_experts=r.num_experts) for name, r in routers.items()}
    most = max(layer['num_experts'] for layer in trained.values())
    for k in top_k or ():
        if not 1 <= k <= most:
            raise MoEConfigError(f'--top-k {k}: the layers of {config} have up to {most} experts, expected 1 to {most}')
    check_data(cfg, ('test',), model.trained_labels)
    path = check_checkpoint(checkpoint, 'checkpoint')
    cfg.load_from, cfg.resume = path, False
    results = []
    with tempfile.TemporaryDirectory() as folder:
        cfg.work_dir = folder
        runner = build_runner(cfg)
        model = plain_model(runner)
        for k in top_k or range(1, most + 1):
            own = all(min(k, layer['num_experts']) == layer['top_k'] for layer in trained.values())
            with intervene(model, with_top_k(model, k).interventions):
                metrics = runner.test()
            results.append({'top_k': k, 'trained': own, 'metrics': _numbers(metrics)})
    found: dict[str, Any] = {
        'config': str(config),
        'checkpoint': str(checkpoint),
        'sha256': file_sha256(path),
        'trained': trained,
    }
    found['results'] = results
    write_result('--json', json_file, found)
    say(sweep_table(found))
    return found


def _numbers(metrics: Mapping[str, object]) -> dict[str, float]:
    return {
        key: float(value) for key, value in metrics.items() if isinstance(value, Real) and not isinstance(value, bool)
    }


def sweep_table(found: Mapping) -> str:
    """The metrics as a plain-text table, one line per K; the trained K has a star."""
    results = found['results']
    names = list(results[0]['metrics']) if results else []
    shown = [name.rpartition('/')[2] for name in names]
    heads = shown if len(set(shown)) == len(shown) else names
    layers = ', '.join(f'{name} (E={of["num_experts"]}, k={of["top_k"]})' for name, of in found['trained'].items())
    widths = [max(len(head), 8) for head in heads]
    lines = [f'active experts at test time; {layers}']
    lines.append('   k ' + ' '.join(f'{head:>{width}}' for head, width in zip(heads, widths, strict=True)))
    for result in results:
        cells = (f'{result["metrics"][name]:{width}.4f}' for name, width in zip(names, widths, strict=True))
        lines.append(f'{result["top_k"]:4d}{"*" if result["trained"] else " "}' + ' '.join(cells))
    if any(result['trained'] for result in results):
        lines.append('* trained with this number')
    return '\n'.join(lines)
