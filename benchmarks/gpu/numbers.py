"""Do heads with experts compute on the GPU what they compute on the CPU, and twice the same?"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from device.head_cases import HEADS, losses_of_head, make_head  # tests/device: one table of every kind of head
from mmengine.runner.utils import set_random_seed
from speed.counters import waits_by_line
from speed.measurement import set_precision
from torch import Tensor, nn

from moe_det.compat import kernels

from .report import Deadline

STEPS = 3  # of a training that is repeated


def agreement(deadline: Deadline) -> dict:
    """Losses and gradients against the CPU's in float32 without TF32, and the lines at which the host waits.

    Returns:
        By kind of head: ``loss``, the largest relative difference; ``gradient``, the largest difference of a
        parameter's gradient over its largest element; ``waits``, line of moe_det -> how often CUDA saw the host wait.
    """
    set_precision('fp32')
    found = {}
    for name in HEADS:
        if deadline.left() < 0:
            break
        on_cpu = make_head(name, 'cpu')
        first, on_gpu = (copy.deepcopy(on_cpu).to('cuda') for _ in range(2))
        expected = losses_of_head(on_cpu, 'cpu')
        sum(expected.values()).backward()
        sum(losses_of_head(first, 'cuda').values()).backward()  # what the first call sets up does not count
        with waits_by_line() as waits:
            losses = losses_of_head(on_gpu, 'cuda')
            sum(losses.values()).backward()
        found[name] = {
            'loss': max(_difference(losses[key].cpu(), value) for key, value in expected.items()),
            'gradient': _largest_gradient_difference(on_gpu, on_cpu),
            'waits': {line: number for line, number in waits.items() if line.startswith('moe_det/')},
        }
    return found


def _difference(actual: Tensor, expected: Tensor) -> float:
    """Largest difference over the largest expected number."""
    actual, expected = actual.detach(), expected.detach()
    return float((actual - expected).abs().max() / expected.abs().max().clamp_min(1e-12))


def _largest_gradient_difference(actual: nn.Module, expected: nn.Module) -> float:
    pairs = zip(actual.parameters(), expected.parameters(), strict=True)
    found = [_difference(a.grad.cpu(), e.grad) for a, e in pairs if e.grad is not None and e.grad.any()]
    return max(found)


def determinism(deadline: Deadline) -> dict:
    """Trains every kind of head twice for a few steps with ``randomness=dict(deterministic=True)``.

    Returns:
        By kind of head: the tensors that differ between the two, bit for bit, or the error that torch raises because an
        operator has no deterministic form.
    """
    set_precision('fp32')
    found: dict[str, list[str] | str] = {}
    try:
        for name in HEADS:
            if deadline.left() < 0:
                break
            try:
                first, second = (_trained(name) for _ in range(2))
                found[name] = [key for key, value in first.items() if not torch.equal(value, second[key])]
            except RuntimeError as error:
                found[name] = str(error)[:300]
    finally:
        torch.use_deterministic_algorithms(False)
        torch.backends.cudnn.deterministic = False
    return found


def _trained(name: str) -> dict[str, Tensor]:
    set_random_seed(3, deterministic=True)
    head = make_head(name, 'cuda')
    optimizer = torch.optim.AdamW([p for p in head.parameters() if p.requires_grad], lr=1e-2, fused=True)
    for _ in range(STEPS):
        optimizer.zero_grad()
        sum(losses_of_head(head, 'cuda').values()).backward()
        optimizer.step()
    return {key: value.clone() for key, value in head.state_dict().items()}


def operators(deadline: Deadline) -> dict:
    """The stand-ins for mmcv's operators: focal loss against float64, NMS of scores with ties against the CPU's."""
    torch.manual_seed(0)
    logits, labels = torch.randn(2000, 80) * 8, torch.randint(0, 81, (2000,))
    boxes = torch.rand(3000, 4) * 50
    boxes[:, 2:] += boxes[:, :2]
    scores = (torch.rand(len(boxes)) * 20).round() / 20
    kept = [kernels.nms(boxes.to(device), scores.to(device), 0.5, 0).cpu() for device in ('cpu', 'cuda')]
    forward, backward = kernels.sigmoid_focal_loss_forward, kernels.sigmoid_focal_loss_backward
    return {
        'focal loss': _focal_difference(forward, logits, labels),
        'focal loss, gradient': _focal_difference(backward, logits, labels),
        'nms equal': torch.equal(*kept),
    }


def _focal_difference(kernel: Callable[..., None], logits: Tensor, labels: Tensor) -> float:
    found = []
    for x, y in ((logits.cuda(), labels.cuda()), (logits.double(), labels)):
        output = torch.empty_like(x)
        kernel(x, y, x.new_empty(0), output, gamma=2.0, alpha=0.25)
        found.append(output.cpu().double())
    return _difference(*found)
