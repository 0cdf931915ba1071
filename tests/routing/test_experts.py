"""Groups of experts: checkpoints of another size, and experts that start from a dense branch."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from moe_det.errors import CheckpointError
from moe_det.routing import ExpertGroup, copy_dense_to_experts


def group_of(num_experts: int) -> ExpertGroup:
    return ExpertGroup([nn.Sequential(nn.Conv2d(8, 16, 3), nn.BatchNorm2d(16)) for _ in range(num_experts)])


@pytest.mark.parametrize('stored', [2, 5])
def test_a_checkpoint_of_another_size_is_refused(stored):
    model = nn.ModuleDict({'cls': group_of(3)})
    with pytest.raises(CheckpointError, match=rf'num_experts={stored} at cls, the config num_experts=3'):
        model.load_state_dict(nn.ModuleDict({'cls': group_of(stored)}).state_dict(), strict=False)


def dense_state() -> dict[str, torch.Tensor]:
    dense = nn.Sequential(nn.Conv2d(8, 16, 3), nn.BatchNorm2d(16))
    nn.init.normal_(dense[1].weight)
    nn.init.normal_(dense[1].bias)
    dense[1].running_var.uniform_(1, 2)
    return {f'head.{name}': value for name, value in dense.state_dict().items()}


def test_every_expert_starts_from_the_dense_branch_plus_its_own_noise():
    state, group = dense_state(), group_of(3)
    original = {name: value.clone() for name, value in state.items()}
    names = {key: key.removeprefix('head.') for key in original}
    assert copy_dense_to_experts(state, names, group, 'moe.experts.', noise=0.1) == []
    assert not any(key.startswith('head.') for key in state)
    group.load_state_dict({key.removeprefix('moe.'): value for key, value in state.items()})
    parameters = dict(group.experts[0].named_parameters())
    for key, name in names.items():
        copies = [dict(e.state_dict())[name] for e in group.experts]
        if name not in parameters:
            assert all(torch.equal(copy, original[key]) for copy in copies)  # statistics are not to be disturbed
            continue
        difference = torch.stack(copies) - original[key]
        assert not torch.equal(copies[0], copies[1])
        if original[key].numel() > 1000:  # 0.1 of the parameter's own standard deviation
            assert difference.std().item() == pytest.approx(0.1 * original[key].std().item(), rel=0.1)


def test_the_noise_depends_on_the_experts_and_not_on_the_random_generators():
    # processes have the same weights before they load, but not always the same generators
    def copies(group: ExpertGroup, seed: int) -> torch.Tensor:
        state = {'weight': torch.arange(8.0 * 16 * 9).view(16, 8, 3, 3)}
        torch.manual_seed(seed)
        copy_dense_to_experts(state, {'weight': '0.weight'}, group, '', noise=0.1)
        return torch.stack([state[f'{expert}.0.weight'] for expert in range(2)])

    group = group_of(2)
    assert torch.equal(copies(group, 1), copies(group, 2))
    assert not torch.equal(copies(group, 1), copies(group_of(2), 1))


def test_without_noise_the_copies_are_exact():
    state, group = dense_state(), group_of(2)
    original = state['head.0.weight'].clone()
    copy_dense_to_experts(state, {'head.0.weight': '0.weight'}, group, 'experts.', noise=0)
    assert torch.equal(state['experts.0.0.weight'], original)
    assert torch.equal(state['experts.1.0.weight'], original)
    assert state['experts.0.0.weight'].data_ptr() != state['experts.1.0.weight'].data_ptr()


def test_tensors_that_do_not_fit_are_told():
    state, group = {'a': torch.zeros(3), 'b': torch.zeros(16, 8, 1, 1)}, group_of(2)
    problems = copy_dense_to_experts(state, {'a': 'unknown', 'b': '0.weight'}, group, 'experts.', noise=0)
    assert problems == ['a: an expert has no unknown', 'b: shape (16, 8, 1, 1), an expert has (16, 8, 3, 3)']
    assert state == {}


class Branch(nn.Module):
    """A tower of two convolutions and a predictor."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.Sequential(nn.Conv2d(8, 40, 3), nn.GroupNorm(4, 40), nn.Conv2d(40, 40, 3))
        self.predictor = nn.Conv2d(40, 6, 3)


def test_a_share_of_the_channels_is_drawn_anew_and_the_predictor_stays():
    dense, group = Branch(), ExpertGroup([Branch() for _ in range(3)])
    nn.init.normal_(dense.convs[2].weight, mean=5.0, std=2.0)
    state = dict(dense.state_dict())
    names = {key: key for key in state}
    copy_dense_to_experts(state, names, group, 'experts.', noise=0, redraw=0.3)
    group.load_state_dict(state)
    redrawn = []
    for expert in group.experts:
        for name, parameter in dense.named_parameters():
            own = expert.get_parameter(name)
            if parameter.dim() < 4 or name.startswith('predictor'):
                assert torch.equal(own, parameter)
        for layer in (0, 2):
            same = (expert.convs[layer].weight == dense.convs[layer].weight).flatten(1)
            changed = ~same.all(1)
            assert changed.sum() == 12  # 0.3 of 40 channels
            assert not same[changed].any()
        redrawn.append(changed.nonzero()[:, 0].tolist())
        values = expert.convs[2].weight[changed]  # 4320 values: the mean is known to 0.03, the deviation to 0.02
        assert values.mean().item() == pytest.approx(dense.convs[2].weight.mean().item(), abs=0.15)
        assert values.std().item() == pytest.approx(dense.convs[2].weight.std().item(), abs=0.1)
    assert redrawn[0] != redrawn[1]


def test_every_expert_takes_its_part():
    dense, group = torch.randn(8, 3, 3, 3), ExpertGroup([nn.Conv2d(3, 4, 3) for _ in range(4)], slots=2)
    state = {'weight': dense.clone(), 'bias': torch.arange(4.0)}

    def part(name: str, tensor: torch.Tensor, expert: int) -> torch.Tensor:
        return tensor.chunk(2)[expert // 2] if name == 'weight' else tensor / 2

    assert not copy_dense_to_experts(state, {n: n for n in ('weight', 'bias')}, group, 'experts.', 0, part=part)
    group.load_state_dict(state)
    for number, expert in enumerate(group.experts):
        assert torch.equal(expert.weight, dense[4 * (number // 2) :][:4])
        assert torch.equal(expert.bias, torch.tensor([0.0, 0.5, 1.0, 1.5]))


def test_a_part_that_does_not_fit_is_told():
    state, group = {'weight': torch.zeros(6, 3, 3, 3)}, ExpertGroup([nn.Conv2d(3, 4, 3) for _ in range(2)], slots=2)
    problems = copy_dense_to_experts(
        state, {'weight': 'weight'}, group, 'experts.', 0, part=lambda name, tensor, expert: tensor[3 * expert :][:3]
    )
    assert problems == ['weight: shape (3, 3, 3, 3), an expert has (4, 3, 3, 3)']
