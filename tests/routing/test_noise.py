"""Learned noise: its formula, when it acts, and a stream that resumes and that processes share."""

from __future__ import annotations

import math

import pytest
import torch

import moe_det.routing.noise as noise_module
from moe_det.routing import GAPLinearGate, KLConstraint, RelativeImportanceConstraint, Router, ZLossConstraint, rows_of
from moe_det.routing.noise import LearnedNoise

SOFT, HARD = KLConstraint, RelativeImportanceConstraint


def noise_of(seed: int, draws: int = 0, channels: int = 3, experts: int = 4) -> LearnedNoise:
    noise = LearnedNoise(channels, experts).double()
    state = {**noise.state_dict(), 'seed': torch.tensor(seed), 'draws': torch.tensor(draws)}
    noise.load_state_dict(state)
    return noise


def draw(noise: LearnedNoise, maps: list[torch.Tensor], unit: str = 'level', grid: int = 1) -> torch.Tensor:
    rows, layout = rows_of(maps, unit, grid)
    return noise.draw(layout, torch.zeros(1, noise.scale.out_features, dtype=torch.float64))


def test_deviation_by_hand():
    noise = noise_of(0, channels=2, experts=2)
    rows, layout = rows_of([torch.tensor([[[[1.0, 3.0]], [[5.0, 5.0]]]]).double()], 'level')
    # W = 0: softplus(0.01) = log(1 + e^0.01) for every expert
    assert noise.deviation(rows, layout)[0].tolist() == pytest.approx([math.log(1 + math.exp(0.01))] * 2)
    noise.scale.weight.data.copy_(torch.tensor([[1.0, 0.0], [0.5, -1.0]]))
    # channel means 2 and 5: softplus(2 + 0.01) and softplus(1 - 5 + 0.01)
    expected = [math.log(1 + math.exp(2.01)), math.log(1 + math.exp(-3.99))]
    assert noise.deviation(rows, layout)[0].tolist() == pytest.approx(expected)
    # one decision for two levels: the mean of their channel means, here 1 and 2.5
    rows, layout = rows_of([rows[0], torch.zeros(1, 2, 3, 3).double()], 'image')
    expected = [math.log(1 + math.exp(1.01)), math.log(1 + math.exp(0.5 - 2.5 + 0.01))]
    assert noise.deviation(rows, layout)[0].tolist() == pytest.approx(expected)


def test_autocast_leaves_the_deviation_alone():
    noise = LearnedNoise(3, 4)
    torch.nn.init.normal_(noise.scale.weight)
    rows, layout = rows_of([torch.randn(2, 3, 4, 4)], 'level')
    full = noise.deviation(rows, layout)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        assert torch.equal(noise.deviation(rows, layout), full)


def test_draws_are_standard_normal_and_differ():
    noise = noise_of(5)
    values = torch.stack([draw(noise, [torch.zeros(50, 3, 1, 1)]) for _ in range(40)])
    assert values.mean().abs() < 0.05
    assert abs(values.std() - 1) < 0.05
    assert len(values.flatten().unique()) == values.numel()
    # neither neighbouring draws nor neighbouring experts go together
    assert abs(torch.corrcoef(values[:2].flatten(1))[0, 1]) < 0.25
    assert abs(torch.corrcoef(values.flatten(0, 1).t())[0, 1]) < 0.08


@pytest.mark.parametrize(
    ('constraints', 'expected'),
    [([], False), ([SOFT], True), ([SOFT, ZLossConstraint], True), ([HARD], False), ([SOFT, HARD], False)],
)
def test_the_default_follows_the_constraints(constraints, expected):
    def build(**noise) -> Router:
        return Router(GAPLinearGate(3, 4), [c() for c in constraints], top_k=2, **noise)

    assert (build().noise is not None) == expected
    assert build(noise=True).noise is not None
    assert build(noise=False).noise is None


@pytest.mark.parametrize(('unit', 'grid'), [('level', 1), ('image', 1), ('patch', 2)])
def test_the_router_adds_the_noise_in_training_only(unit, grid):
    router = Router(GAPLinearGate(3, 4), [SOFT()], top_k=2, unit=unit).double()
    torch.nn.init.normal_(router.noise.scale.weight)
    rows, layout = rows_of([torch.randn(2, 3, 4, 4).double(), torch.randn(2, 3, 3, 2).double()], unit, grid)
    plain = router.gate_logits(rows, layout)
    routing = router.train()(rows, layout)
    same = noise_of(int(router.noise.seed))
    expected = plain + same.draw(layout, plain) * router.noise.deviation(rows, layout)
    assert torch.equal(routing.logits, expected)
    assert not torch.equal(routing.logits, plain)
    assert torch.equal(router.eval()(rows, layout).logits, plain)
    assert router.noise.draws == 1  # evaluation draws nothing


def test_the_noise_is_learned():
    router = Router(GAPLinearGate(3, 4), [SOFT(weight=1.0)], top_k=2).double().train()
    router(*rows_of([torch.randn(6, 3, 4, 4).double()], 'level'))
    router.collect()['kl'].backward()
    assert router.noise.scale.weight.grad.abs().max() > 0


def test_seed_and_draw_number_determine_the_noise():
    maps = [torch.zeros(3, 3, 2, 2)]
    first, second = noise_of(11), noise_of(11)
    torch.manual_seed(1)
    one = [draw(first, maps) for _ in range(3)]
    torch.manual_seed(2)
    two = [draw(second, maps) for _ in range(3)]
    for a, b in zip(one, two, strict=True):
        assert torch.equal(a, b)
    assert torch.equal(draw(noise_of(11, draws=2), maps), one[2])
    assert not torch.equal(draw(noise_of(12), maps), one[0])


def test_drawing_leaves_the_global_generator_alone():
    noise = noise_of(11)
    torch.manual_seed(4)
    expected = torch.rand(3)
    torch.manual_seed(4)
    draw(noise, [torch.zeros(3, 3, 2, 2)])
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize(('unit', 'grid'), [('level', 1), ('image', 1), ('patch', 2)])
def test_two_processes_share_the_noise_of_one(unit, grid, monkeypatch):
    maps = [torch.randn(4, 3, 4, 4), torch.randn(4, 3, 1, 3)]
    whole = draw(noise_of(9), maps, unit, grid)
    _, layout = rows_of(maps, unit, grid)
    for rank in (0, 1):
        monkeypatch.setattr(noise_module, 'world', lambda rank=rank: (rank, 2))
        own = draw(noise_of(9), [m[rank::2] for m in maps], unit, grid)
        # sample i is on process i mod 2
        assert torch.equal(own, whole[layout.images() % 2 == rank])


def test_processes_agree_after_the_wrapper_has_sent_the_buffers(monkeypatch):
    # DistributedDataParallel copies rank 0's buffers into the other processes; their own seeds must not count
    maps = [torch.zeros(2, 3, 2, 2)]
    own, other = noise_of(1), LearnedNoise(3, 4).double()
    other.seed.copy_(own.seed)
    monkeypatch.setattr(noise_module, 'world', lambda: (1, 2))
    for _ in range(2):
        assert torch.equal(draw(own, maps), draw(other, maps))
