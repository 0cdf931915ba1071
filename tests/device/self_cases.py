"""The pretended GPU itself: what a GPU refuses is refused, and what makes the host wait is noted."""

from __future__ import annotations

from collections.abc import Callable

import torch
from device.watch import Watch
from torch import Tensor, nn


def run_counts(watch: Watch) -> None:
    """Three kinds of waits, a copy without one, and operators that need neither."""
    ones = torch.ones(3, device=watch.device)
    with watch.counted('nothing', 'tests'):
        total = (ones * 2 + torch.tensor(1.0)).sum()  # a number of the host goes along with the call
    with watch.counted('waits', 'tests'):
        total.item()
        ones[ones > 0]
        torch.tensor([1.0], device=watch.device)
    with watch.counted('copy', 'tests'):
        torch.ones(3).to(watch.device, non_blocking=True)
    watch.keep('total', dict(of=total))


REFUSED: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    'product': lambda cuda, cpu: cuda @ cpu,
    'sum': lambda cuda, cpu: cuda + cpu,
    'parts': lambda cuda, cpu: torch.cat([cuda, cpu]),
    'gradient': lambda cuda, cpu: nn.functional.linear(cuda, cpu.requires_grad_()),
    'generator': lambda cuda, cpu: cuda.normal_(generator=torch.Generator()),
}


def run_refusals(watch: Watch) -> None:
    """Keeps for each call whether it raised; on the CPU nothing is mixed and nothing raises."""
    for name, call in REFUSED.items():
        raised = False
        try:
            call(torch.ones(2, 2, device=watch.device), torch.ones(2, 2))
        except RuntimeError as error:
            raised = 'device' in str(error)
        watch.keep('raised', {name: torch.tensor(raised)})


CASES: dict[str, Callable[[Watch], None]] = {'self: counts': run_counts, 'self: refusals': run_refusals}
