"""Shards run as one block, against the weighted sum of their outputs."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from small_models import spread_weights
from torch import nn

from moe_det.models import merged_shards
from moe_det.models.branch_shape import BranchShape
from moe_det.models.merged_shards import MergedShards, merges
from moe_det.models.shards import ShardExpert

NORMS = [
    None,
    dict(type='GN', num_groups=4),
    dict(type='BN'),
    dict(type='IN'),
    dict(type='IN', affine=True),
]


def copies(shards: int, norm: dict | None, in_channels: int = 6, stacked_convs: int = 1) -> nn.ModuleList:
    """One copy of each shard of a branch with 8 channels and 5 outputs, in evaluation."""
    shape = BranchShape('cls', in_channels, 8, 5, stacked_convs, None, norm)
    experts = spread_weights(nn.ModuleList(ShardExpert(shape, shards) for _ in range(shards))).double().eval()
    for name, buffer in experts.named_buffers():
        if name.endswith(('running_mean', 'running_var')):
            buffer.copy_(0.5 + torch.rand(buffer.shape, dtype=buffer.dtype))
    return experts


def parameters_of(experts: nn.ModuleList) -> list[dict[str, torch.Tensor]]:
    return [dict(expert.named_parameters()) for expert in experts]


@pytest.mark.parametrize('shards', [1, 2, 4])
@pytest.mark.parametrize('norm', NORMS, ids=str)
def test_values_and_all_gradients_are_those_of_the_weighted_sum(norm, shards):
    torch.manual_seed(0)
    experts = copies(shards, norm)
    x = torch.randn(3, 6, 5, 4, dtype=torch.float64, requires_grad=True)
    log_weights = torch.zeros(3, shards, dtype=torch.float64, requires_grad=True)
    direction = torch.randn(3, 5, 5, 4, dtype=torch.float64)
    weights = log_weights.exp()[:, :, None, None, None]
    theirs = sum(weights[:, s] * expert(x) for s, expert in enumerate(experts))
    ours = MergedShards(experts, parameters_of(experts))(x, log_weights)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    named = {'x': x, 'log_weights': log_weights, **dict(experts.named_parameters())}
    gradients = [torch.autograd.grad(y, list(named.values()), direction) for y in (ours, theirs)]
    for name, a, b in zip(named, *gradients, strict=True):
        assert b.abs().max() > 1e-3, name
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-11, msg=lambda text, name=name: f'{name}: {text}')


def test_the_weights_gradient_is_the_slope_of_the_sum():
    # by hand: one pixel, two shards of one channel; outputs 3 * relu(2 * 5) + 7 and 4 * relu(-1 * 5) + 11
    experts = nn.ModuleList(ShardExpert(BranchShape('reg', 1, 2, 1, 1, None, None), 2) for _ in range(2))
    for expert, values in zip(experts, [(2, 0, 3, 7), (-1, 0, 4, 11)], strict=True):
        for parameter, value in zip(expert.parameters(), values, strict=True):
            nn.init.constant_(parameter, value)
    log_weights = torch.zeros(1, 2, requires_grad=True)
    output = MergedShards(experts, parameters_of(experts))(torch.full((1, 1, 1, 1), 5.0), log_weights)
    assert output.item() == 3 * 10 + 7 + 11
    output.backward()
    assert log_weights.grad.tolist() == [[37.0, 11.0]]


def test_without_a_gate_to_train_the_biases_still_learn():
    experts = copies(2, None)
    x = torch.ones(3, 6, 5, 4, dtype=torch.float64)
    MergedShards(experts, parameters_of(experts))(x, torch.zeros(3, 2)).sum().backward()
    for expert in experts:
        assert expert.predictor.bias.grad.tolist() == [3 * 5 * 4] * 5


@pytest.mark.parametrize(
    'norm, training, answer',
    [
        (nn.GroupNorm(2, 4), True, True),
        (None, True, True),
        (nn.InstanceNorm2d(4), True, True),
        (nn.InstanceNorm2d(4, track_running_stats=True), True, False),
        (nn.BatchNorm2d(4), True, False),
        (nn.BatchNorm2d(4), False, True),
        (nn.BatchNorm2d(4, track_running_stats=False), False, False),
    ],
    ids=str,
)
def test_rows_that_share_statistics_are_not_merged(norm, training, answer):
    assert merges(None if norm is None else norm.train(training)) is answer


@pytest.mark.parametrize('shards', [2, 4])
@pytest.mark.parametrize('norm', [None, dict(type='GN', num_groups=4)], ids=str)
def test_convolutions_that_run_one_by_one_give_the_same(monkeypatch, norm, shards):
    """Where the weights are large beside the maps they are not joined."""
    torch.manual_seed(0)
    experts = copies(shards, norm)
    x = torch.randn(2, 6, 2, 1, dtype=torch.float64, requires_grad=True)
    log_weights = torch.zeros(2, shards, dtype=torch.float64, requires_grad=True)
    wanted = [x, log_weights, *experts.parameters()]

    def run() -> tuple[list[torch.Tensor], int]:
        calls = []
        real = torch.nn.functional.conv2d
        monkeypatch.setattr(torch.nn.functional, 'conv2d', lambda *args: calls.append(args) or real(*args))
        output = MergedShards(experts, parameters_of(experts))(x, log_weights)
        monkeypatch.setattr(torch.nn.functional, 'conv2d', real)
        return [output, *torch.autograd.grad(output.sin().sum(), wanted)], len(calls)

    joined, few = run()
    monkeypatch.setattr(merged_shards, 'LARGE', 0)
    apart, many = run()
    assert (few, many) == (2, 2 * shards)
    for a, b in zip(apart, joined, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-11)


def test_autocast_gives_every_gradient_its_own_precision():
    experts = copies(2, dict(type='GN', num_groups=4)).float()
    x, log_weights = torch.randn(2, 6, 5, 4, requires_grad=True), torch.zeros(2, 2, requires_grad=True)
    wanted = [x, log_weights, *experts.parameters()]
    gradients = []
    for low in (False, True):
        with torch.autocast('cpu', dtype=torch.bfloat16, enabled=low):
            output = MergedShards(experts, parameters_of(experts))(x, log_weights)
        assert output.dtype == (torch.bfloat16 if low else torch.float32)
        gradients.append(torch.autograd.grad(output.float().sin().sum(), wanted))
    for exact, lowered in zip(*gradients, strict=True):
        assert lowered.dtype == torch.float32
        assert (lowered - exact).norm() < 0.1 * exact.norm()


def test_what_is_kept_for_the_backward_pass_is_what_the_uncut_block_keeps():
    experts, dense = copies(2, dict(type='GN', num_groups=4)), copies(1, dict(type='GN', num_groups=4))
    x = torch.ones(1, 6, 32, 32, dtype=torch.float64, requires_grad=True)
    log_weights = torch.zeros(1, 2, dtype=torch.float64, requires_grad=True)

    def kept(run: Callable[[], torch.Tensor]) -> int:
        sizes = {}
        known = {tensor.data_ptr() for tensor in (x, *experts.parameters(), *dense.parameters())}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in known:
                sizes[storage.data_ptr()] = storage
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            graph = run()
        return sum(storage.nbytes() for storage in sizes.values()) if graph.requires_grad else 0

    ours = kept(lambda: MergedShards(experts, parameters_of(experts))(x, log_weights))
    theirs = kept(lambda: dense[0](x))
    assert theirs > 2 * 8 * 32 * 32 * 8  # two maps of 8 channels
    assert ours < theirs + 1000  # two vectors for the norm, and no weights
