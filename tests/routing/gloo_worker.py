"""One of the two processes of test_ranks.py. Imports moe_det.routing alone, without the package around it.

Usage: python gloo_worker.py RANK RENDEZVOUS_FILE OUTPUT_FILE
"""

from __future__ import annotations

import sys
import types
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

REPOSITORY = Path(__file__).resolve().parents[2]
STEPS, IMAGES, CHANNELS = 3, 4, 3


def import_routing() -> types.ModuleType:
    """Imports moe_det.routing under a bare parent package, which does not import mmdet."""
    if 'moe_det' not in sys.modules:
        package = types.ModuleType('moe_det')
        package.__path__ = [str(REPOSITORY / 'moe_det')]
        sys.modules['moe_det'] = package
    import moe_det.routing

    return moe_det.routing


def train(rank: int, num_ranks: int) -> dict[str, torch.Tensor]:
    """Three steps on this process's part of four images; gradients are averaged as DistributedDataParallel does."""
    routing = import_routing()
    torch.manual_seed(0)
    constraints = [
        routing.KLConstraint(weight=1.0),
        routing.ImportanceConstraint(weight=1.0),
        routing.EntropyConstraint(weight=1.0),
        routing.SwitchConstraint(weight=1.0),
        routing.ZLossConstraint(weight=1.0),
        routing.SampleSimilarityConstraint(beta_s=3.0, beta_d=2.0),
        routing.RelativeImportanceConstraint(),
        routing.MeanImportanceConstraint(threshold=0.05),
        routing.SelectionBiasConstraint(rate=0.05),
    ]
    router = routing.Router(
        routing.GAPLinearGate(CHANNELS, 4), constraints, top_k=2, balance_over='level', num_levels=2, noise=True
    )
    torch.nn.init.normal_(router.noise.scale.weight)
    group = routing.ExpertGroup([torch.nn.Conv2d(CHANNELS, 2, 1) for _ in range(4)])
    router, group = router.double().train(), group.double().train()
    parameters = {**dict(router.named_parameters()), **dict(group.named_parameters())}
    results = {}
    for step in range(STEPS):
        whole = [torch.randn(IMAGES, CHANNELS, *s, dtype=torch.float64) for s in ((3, 4), (2, 1))]
        maps = [m[rank::num_ranks] for m in whole]
        rows, layout = routing.rows_of(maps, 'level')
        decision = router(rows, layout)
        plan = routing.plan_dispatch([decision], layout.level_rows)[0]
        outputs = group(rows, decision, layout, plan)
        losses = router.collect()
        # a mean over images, whose average over equal parts is the mean over all
        task = sum(y.square().flatten(1).sum(1).mean() for y in outputs)
        for parameter in parameters.values():
            parameter.grad = None
        (task + sum(losses.values())).backward()
        for name, parameter in parameters.items():
            if num_ranks > 1:
                dist.all_reduce(parameter.grad)
                parameter.grad /= num_ranks
            results[f'{step} gradient {name}'] = parameter.grad.clone()
        with torch.no_grad():
            for parameter in parameters.values():
                parameter -= 0.05 * parameter.grad
        results.update({f'{step} loss {key}': loss.detach() for key, loss in losses.items()})
        results.update({f'{step} state {name}': value.clone() for name, value in router.named_buffers()})
        results[f'{step} indices'] = decision.indices
    return results


def similarity(rows: tuple[int, int], rank: int | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss and gate gradient of one step in which the processes have ``rows`` images; None for all in one."""
    routing = import_routing()
    generator = torch.Generator().manual_seed(5)
    constraint = routing.SampleSimilarityConstraint(distance='inputs')
    router = routing.Router(routing.GAPLinearGate(CHANNELS, 4), [constraint], top_k=2, noise=False).double().train()
    weight = torch.randn(4, CHANNELS, generator=generator, dtype=torch.float64)
    router.gate.load_state_dict({'fc.weight': weight, 'fc.bias': weight[:, 0]})
    maps = torch.randn(sum(rows), CHANNELS, 2, 2, generator=generator, dtype=torch.float64)
    inputs = torch.randn(sum(rows), 5, generator=generator, dtype=torch.float64)
    own = slice(None) if rank is None else slice(*((0, rows[0]), (rows[0], sum(rows)))[rank])
    if len(maps[own]):
        router(*routing.rows_of([maps[own]], 'level'))
        router.supply('inputs', inputs[own])
    loss = router.collect()['similarity']
    if loss.requires_grad:  # not in a process without rows
        loss.backward()
    gradient = router.gate.fc.weight.grad
    return loss.detach(), torch.zeros_like(weight) if gradient is None else gradient


def main(rank: int, rendezvous: str, output: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        'gloo', init_method=f'file://{rendezvous}', rank=rank, world_size=2, timeout=timedelta(seconds=300)
    )
    routing = import_routing()
    from moe_det.routing.distributed import sum_over_ranks

    # a sum and its gradient: d(total^2)/d local = 2 total, times the 2 processes that an average divides by
    local = torch.tensor([1.0, 10.0][rank], requires_grad=True)
    total = sum_over_ranks(local)
    total.square().backward()
    results = {'sum': total.detach(), 'sum gradient': local.grad}
    results['constant'] = sum_over_ranks(torch.tensor(2.0))

    # a process without rows still takes part in the step
    router = routing.Router(
        routing.GAPLinearGate(CHANNELS, 4), [routing.KLConstraint(), routing.MeanImportanceConstraint()], top_k=2
    ).train()
    if rank == 0:
        router.gate.load_state_dict({'fc.weight': torch.zeros(4, CHANNELS), 'fc.bias': torch.zeros(4)})
        router(*routing.rows_of([torch.ones(3, CHANNELS, 2, 2)], 'level'))
    results['loss beside an idle process'] = router.collect()['kl'].detach()
    results['steps beside an idle process'] = router.constraints['mean_importance'].steps.clone()

    # pairs of rows whose number differs between the processes, compared by values that their images were given
    for name, rows in (('uneven', (3, 2)), ('idle', (3, 0))):
        results[f'{name} similarity'], results[f'{name} gradient'] = similarity(rows, rank)

    results.update(train(rank, 2))
    torch.save(results, output)
    dist.destroy_process_group()


if __name__ == '__main__':
    main(int(sys.argv[1]), sys.argv[2], sys.argv[3])
