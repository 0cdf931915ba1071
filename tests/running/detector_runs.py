"""Trainings of a whole detector with experts in head and backbone, by mmengine's runner, in float64.

One process trains on whole batches, one of two processes on its part of them.
"""

from __future__ import annotations

import dataclasses
import socket
from pathlib import Path

import torch
import torch.distributed as dist
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.registry import MODELS
from mmengine.runner import Runner
from small_models import detector, spread_weights
from small_runs import Images, QuickRunner
from torch import nn
from torch.distributed.nn.functional import all_reduce

from moe_det.hooks.moe_hook import MoEHook
from moe_det.routing import Router, find_routers
from moe_det.running.ranks import prepare_ranks

COUNTS = (1, 4, 2, 3, 4, 1, 1, 2)  # objects of each image: processes have different numbers of positive anchors
IMAGES, BATCH, EPOCHS = len(COUNTS), 4, 2
STEPS = EPOCHS * IMAGES // BATCH
UNUSED_AT, UNUSED = 2, 3  # the gates avoid this expert from this step on
FOUR = dict(num_experts=4, top_k=2)
SOFT = [dict(type='ImportanceConstraint', weight=0.5), dict(type='KLConstraint', weight=0.5)]
HARD = dict(type='RelativeImportanceConstraint', threshold=0.1)
# in the whole of stage 4, which has norms inside its experts
STAGE = dict(stages=(4,), num_experts=4, top_k=1)
# in one convolution of stage 3, which has none
CONV = dict(convs=(3,), **FOUR)


@MODELS.register_module(force=True)
class SummedBN(nn.BatchNorm2d):
    """What SyncBN computes, which torch has for accelerators only: mean and variance over all processes."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return super().forward(x)
        sums = torch.cat([x.sum((0, 2, 3)), x.square().sum((0, 2, 3)), x.new_tensor([x.numel() / x.shape[1]])])
        if dist.is_initialized():
            sums = all_reduce(sums)
        (mean, square), count = sums[:-1].view(2, -1) / sums[-1], sums[-1].detach()
        variance = square - mean.square()
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * count / (count - 1), self.momentum)
        scale = self.weight / (variance + self.eps).sqrt()
        return (x - mean[:, None, None]) * scale[:, None, None] + self.bias[:, None, None]


# name -> arguments of run()
CASES = {
    # gate noise too: each image gets the same draws however the batch is spread
    'soft': dict(
        head=dict(**FOUR, constraint=SOFT, balance_over='level'),
        backbone=dict(moe=dict(**STAGE, constraint=[dict(type='KLConstraint'), dict(type='ZLossConstraint')])),
    ),
    'hard': dict(
        head=dict(**FOUR, constraint=HARD),
        backbone=dict(
            moe=dict(
                **STAGE,
                constraint=[
                    dict(type='SelectionBiasConstraint', rate=0.1),
                    dict(type='MeanImportanceConstraint', threshold=0.1),
                ],
            )
        ),
        from_dense=True,
    ),
    'synchronised norms': dict(
        head=dict(**FOUR, constraint=HARD),
        backbone=dict(
            moe=dict(**CONV, constraint=SOFT), norm_eval=False, norm_cfg=dict(type='SummedBN', requires_grad=True)
        ),
    ),
    # the layer in the backbone lies inside a checkpointed block
    'checkpointing': dict(
        head=dict(**FOUR, constraint=SOFT),
        backbone=dict(moe=dict(**CONV, constraint=[*SOFT, dict(type='MeanImportanceConstraint')]), with_cp=True),
    ),
    'accumulation': dict(
        head=dict(**FOUR, constraint=HARD),
        backbone=dict(moe=dict(**STAGE, constraint=dict(type='SelectionBiasConstraint', rate=0.1))),
        accumulate=2,
    ),
}


def spread_choices(model: nn.Module, routers: dict[str, Router]) -> None:
    """Scales and centres the gates' logits over all images and levels, so that the rows choose different experts."""
    seen: dict[str, list] = {name: [] for name in routers}
    handles = [
        router.gate.register_forward_pre_hook(lambda _, args, name=name: seen[name].append(args[0].mean((2, 3))))
        for name, router in routers.items()
    ]
    data = model.data_preprocessor(pseudo_collate(Images(COUNTS).items))
    with torch.no_grad():
        model.eval()(**data, mode='tensor')
        for name, router in routers.items():
            pooled = torch.cat(seen[name])
            router.gate.fc.weight /= pooled.std(0).mean()
            router.gate.fc.bias.copy_(-router.gate.fc.weight @ pooled.mean(0))
    for handle in handles:
        handle.remove()


class Watch(Hook):
    """Keeps every iteration's losses, loads of this process and states; makes the gates avoid an expert.

    Args:
        unused_at: first iteration in which they do.
    """

    priority = 'VERY_LOW'

    def __init__(self, unused_at: int) -> None:
        self.unused_at = unused_at
        self.results: dict = {}
        self.usage: dict = {}

    def before_train(self, runner) -> None:
        model = plain(runner)
        self.routers = find_routers(model)
        spread_choices(model, self.routers)
        self.results['start'] = {name: p.detach().clone() for name, p in model.named_parameters()}
        for name, router in self.routers.items():

            def see(routing, layout, name: str = name) -> None:
                key = f'{runner.iter} {name}'
                load = routing.local_usage().load.sum(0)
                self.results['loads'][key] = self.results['loads'].get(key, 0) + load

            def add(usage, name: str = name) -> None:
                self.usage[name] = self.usage[name] + usage if name in self.usage else usage

            router.decided.observe(see)
            router.collected.observe(add)
        self.results.update(loads={}, losses=[], states=[])

    def before_train_iter(self, runner, batch_idx, data_batch=None) -> None:
        if runner.iter == self.unused_at:
            with torch.no_grad():
                for router in self.routers.values():
                    router.gate.fc.bias[UNUSED] = -1e3

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        self.results['losses'].append({key: value.detach().clone() for key, value in outputs.items()})
        self.results['states'].append(
            {
                f'{name}.{key}': value.clone()
                for name, router in self.routers.items()
                for key, value in [*router.constraints.named_buffers(), *vars(self.usage[name]).items()]
            }
        )


def run(
    folder: Path,
    name: str,
    *hooks: Hook | dict,
    head: dict,
    backbone: dict,
    rank: int = 0,
    num_ranks: int = 1,
    batch_size: int = BATCH,
    accumulate: int = 1,
    from_dense: bool = False,
    same_boxes: bool = False,
    precise: bool = True,
    **changes,
) -> Runner:
    """Builds the runner of a case.

    Args:
        folder: work folders are made in it; ``dense.pth`` is a plain detector's checkpoint.
        name: of the run; two runs of one process need two.
        hooks: beside MoEHook.
        head: experts of the head.
        backbone: keys of MoEResNet.
        rank: this process.
        num_ranks: number of processes, each of which gets its part of the batch.
        batch_size: images of one iteration in all processes.
        accumulate: iterations of an optimizer step.
        from_dense: start from ``dense.pth``.
        same_boxes: see :class:`Images`.
        precise: float64.
        **changes: arguments of Runner.
    """
    torch.manual_seed(rank)  # processes agree on nothing that the run does not make them agree on
    model = detector(head, backbone=dict(type='MoEResNet', **backbone))
    model = model.double() if precise else model
    with torch.no_grad():
        for router in find_routers(model).values():
            router.gate.fc.weight.normal_(std=0.5)
            if router.noise is not None:
                router.noise.scale.weight.normal_()
    launcher = 'pytorch' if num_ranks > 1 else 'none'
    cfg = Config(dict(launcher=launcher, model_wrapper_cfg=None))
    if num_ranks > 1:
        prepare_ranks(cfg)
    settings = dict(
        model=model,
        work_dir=str(folder / name),
        train_dataloader=dict(
            batch_size=batch_size // num_ranks,
            num_workers=0,
            sampler=dict(type='DefaultSampler', shuffle=False),
            dataset=Images(COUNTS, same_boxes),
            collate_fn=dict(type='pseudo_collate'),
        ),
        train_cfg=dict(by_epoch=True, max_epochs=EPOCHS),
        optim_wrapper=dict(
            optimizer=dict(type='SGD', lr=0.02, momentum=0.9, weight_decay=1e-3), accumulative_counts=accumulate
        ),
        default_hooks=dict(checkpoint=None, logger=None, runtime_info=None),
        custom_hooks=[dict(type='MoEHook', interval=100), *hooks],
        load_from=str(folder / 'dense.pth') if from_dense else None,
        launcher=launcher,
        cfg=cfg,
        default_scope='mmdet',
        experiment_name=f'{name} {num_ranks} {folder}',
        randomness=dict(seed=0, diff_rank_seed=True),
        log_level='ERROR',
    )
    return QuickRunner(**{**settings, **changes})


def trained(folder: Path, name: str, *hooks: Hook | dict, **case) -> dict:
    """Runs a case; returns what :class:`Watch` kept, the last state dict as ``end`` and the wrapped model's class."""
    images_per_step = case.get('batch_size', BATCH) * case.get('accumulate', 1)
    watch = Watch(UNUSED_AT * BATCH // images_per_step * case.get('accumulate', 1))
    runner = run(folder, name, *hooks, watch, **case)
    runner.train()
    model = plain(runner)
    unused = getattr(runner.model, 'find_unused_parameters', None)
    return dict(watch.results, end=model.state_dict(), find_unused_parameters=unused)


class Detections(BaseMetric):
    """Keeps what it is given: id, boxes and scores of every image."""

    def process(self, data_batch, data_samples) -> None:
        for sample in data_samples:
            found = sample['pred_instances']
            self.results.append((sample['img_id'], found['bboxes'].tolist(), found['scores'].tolist()))

    def compute_metrics(self, results: list) -> dict:
        self.seen = results
        return dict(mean_score=sum(sum(scores) for _, _, scores in results) / len(results))


def evaluated(folder: Path, name: str, rank: int = 0, num_ranks: int = 1) -> dict:
    """Validates on seven images, one at a time; in two processes one of them gets an image twice.

    Returns:
        The metric, the images in the metric's order and the layers' utilisation.
    """
    metric = Detections()
    dataset = Images(COUNTS[:7])
    loader = dict(batch_size=1, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=False), dataset=dataset)
    runner = run(
        folder,
        name,
        rank=rank,
        num_ranks=num_ranks,
        head=dict(**FOUR, constraint=HARD),
        backbone=dict(moe=STAGE),
        val_dataloader=dict(loader, collate_fn=dict(type='pseudo_collate')),
        val_cfg={},
        val_evaluator=[metric],
    )
    spread_weights(plain(runner))
    metrics = runner.val()
    (hook,) = [hook for hook in runner.hooks if isinstance(hook, MoEHook)]
    used = {layer: dataclasses.asdict(value) for layer, value in hook.utilisation.items()}
    return dict(metrics=metrics, images=getattr(metric, 'seen', None), utilisation=used)


def plain(runner: Runner) -> nn.Module:
    """The detector without its data-parallel wrapper."""
    return getattr(runner.model, 'module', runner.model)


def assert_close(actual: dict, expected: dict, **tolerance) -> None:
    """Tensors by name are the same."""
    assert actual.keys() == expected.keys() and expected
    for name, value in expected.items():
        torch.testing.assert_close(actual[name], value, msg=lambda m, name=name: f'{name}: {m}', **tolerance)


def free_port() -> str:
    """A port for processes that share a training."""
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        return str(probe.getsockname()[1])
