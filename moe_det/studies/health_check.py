"""Runs the test images through a model and checks that its experts are in use."""

from __future__ import annotations

import torch
from tqdm import tqdm

from ..analysis.health import HealthLimits, LayerHealth, health_report, health_table, judge_layer
from ..analysis.usage import FEWEST_ROWS
from ..common.console import check_result, say, write_result
from ..errors import DataError, MoEConfigError
from ..routing.records import UsageRecorder
from ..routing.router import find_routers
from ..running.launch import load_config
from ..running.trained_model import load_trained_model, test_batches

HEALTHY, COLLAPSED = 0, 1


def check_health(
    config: str,
    checkpoint: str,
    *,
    data_root: str | None = None,
    limit: int | None = None,
    living_share: float = HealthLimits.living_share,
    max_load_ratio: float | None = None,
    min_living: int | None = None,
    json_file: str | None = None,
    device: str | None = None,
    cfg_options: list[str] | None = None,
) -> int:
    """Prints how every layer uses its experts; the function behind ``router_health.py``.

    Args:
        config: the config of the detector.
        checkpoint: its weights.
        data_root: folder that replaces the config's data folder.
        limit: only the first N test images; None takes all.
        living_share: see :class:`~moe_det.analysis.health.HealthLimits`, as ``max_load_ratio`` and ``min_living``.
        json_file: writes the result there.
        device: see :func:`.trained_model.analysis_device`.
        cfg_options: changes of the config.

    Returns:
        The exit status: 0 when healthy, 1 when a layer has collapsed.

    Raises:
        MoEDetError: the config, the checkpoint or the data cannot be used, or there are too few images to judge.
    """
    limits = HealthLimits(living_share, max_load_ratio, min_living)
    check_result('--json', json_file)
    cfg = load_config(config, cfg_options, data_root)
    model = load_trained_model(cfg, checkpoint, device)
    routers = find_routers(model)
    fewest = min(router.copies for router in routers.values())
    if min_living is not None and min_living > fewest:
        what = 'experts' if all(router.slots == 1 for router in routers.values()) else 'experts or copies of a shard'
        raise MoEConfigError(f'--min-living {min_living}: a layer has {fewest} {what}, so no checkpoint could pass')
    batches = test_batches(cfg, limit, model.trained_labels)
    with UsageRecorder(model) as recorder, torch.no_grad():
        for _, batch in tqdm(batches, desc='images', unit='batch', disable=None):
            model.test_step(batch)
    layers = [
        judge_layer(
            name, recorder.usage[name], router.test_top_k, limits, by_level=router.num_groups > 1, slots=router.slots
        )
        for name, router in routers.items()
        if name in recorder.usage
    ]
    if not layers:
        raise DataError('no image reached a MoE layer')
    about = {'config': str(config), 'checkpoint': checkpoint, 'images': batches.num_images}
    report = health_report(layers, limits, about)
    write_result('--json', json_file, report)
    say(health_table(layers))
    return _verdict(layers, report['problems'], batches.num_images)


def _verdict(layers: list[LayerHealth], problems: list[str], images: int) -> int:
    if problems:
        say('\nCOLLAPSED:\n' + '\n'.join(f'  {text}' for text in problems))
        return COLLAPSED
    unjudged = [text for layer in layers for text in layer.unjudged]
    if unjudged:
        more = f' and {len(unjudged) - 2} more' if len(unjudged) > 2 else ''
        raise DataError(
            f'{images} images gave fewer than {FEWEST_ROWS} routing rows to {"; ".join(unjudged[:2])}{more}: so few '
            'may fall on the same experts by chance; take more images'
        )
    say(f'\nhealthy: {len(layers)} layers over {images} images')
    return HEALTHY
