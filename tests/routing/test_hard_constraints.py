"""Hard constraints: states by hand, masks in training only, long runs, checkpoints."""

from __future__ import annotations

import pytest
import torch

from moe_det.routing import (
    MeanImportanceConstraint,
    RelativeImportanceConstraint,
    Router,
    Routing,
    SelectionBiasConstraint,
)

INF = float('inf')


def routing_of(*importances: list[int]) -> Routing:
    """One routing whose group g gives expert e the importance (and load) ``importances[g][e]``."""
    experts, groups = [], []
    for group, importance in enumerate(importances):
        for expert, rows in enumerate(importance):
            experts += [expert] * rows
            groups += [group] * rows
    rows, num_experts = len(experts), len(importances[0])
    indices = torch.tensor(experts, dtype=torch.long)[:, None]
    weights = torch.zeros(rows, 1)
    return Routing(
        torch.zeros(rows, num_experts), indices, weights, True, torch.tensor(groups, dtype=torch.long), len(importances)
    )


def prepared(constraint, num_experts: int, num_groups: int = 1):
    constraint.prepare(num_experts, num_groups)
    return constraint.train()


def forbidden(constraint, num_experts: int, groups=(0,)) -> list[list[bool]]:
    logits = torch.zeros(len(groups), num_experts)
    return torch.isneginf(constraint.mask(logits, torch.tensor(groups))).tolist()


def test_relative_importance_by_hand():
    # I = (3, 1, 2), mean 2: r = (.5, -.5, 0); then (1, 4, 1), mean 2: r = (0, .5, -.5)
    constraint = prepared(RelativeImportanceConstraint(threshold=0.3), 3)
    assert forbidden(constraint, 3) == [[False, False, False]]
    constraint.update(routing_of([3, 1, 2]))
    assert constraint.relative.tolist() == [[0.5, -0.5, 0.0]]
    assert forbidden(constraint, 3) == [[True, False, False]]
    constraint.update(routing_of([1, 4, 1]))
    assert constraint.relative.tolist() == [[0.0, 0.5, -0.5]]
    assert forbidden(constraint, 3) == [[False, True, False]]
    constraint.update(routing_of([0, 0, 0]))  # a step without rows moves nothing
    assert constraint.relative.tolist() == [[0.0, 0.5, -0.5]]


def test_mean_importance_by_hand():
    # shares (3, 1, 2)/6; then ((3, 1, 2)/6 + (1, 4, 1)/6)/2 = (4, 5, 3)/12; then (2 (4, 5, 3)/12 + (1, 0, 0))/3
    constraint = prepared(MeanImportanceConstraint(threshold=0.1), 3)
    assert forbidden(constraint, 3) == [[False, False, False]]
    constraint.update(routing_of([3, 1, 2]))
    assert constraint.mean[0].tolist() == pytest.approx([3 / 6, 1 / 6, 2 / 6])
    assert forbidden(constraint, 3) == [[True, False, False]]  # 1/2 - 1/3 > 0.1
    constraint.update(routing_of([1, 4, 1]))
    assert constraint.mean[0].tolist() == pytest.approx([4 / 12, 5 / 12, 3 / 12])
    assert forbidden(constraint, 3) == [[False, False, False]]  # 5/12 - 1/3 < 0.1
    constraint.update(routing_of([0, 0, 0]))  # a step without rows moves nothing and counts nothing
    constraint.update(routing_of([7, 0, 0]))
    assert constraint.mean[0].tolist() == pytest.approx([5 / 9, 5 / 18, 1 / 6])
    assert constraint.mean.sum().item() == pytest.approx(1)
    assert constraint.steps.tolist() == [3]


def test_selection_bias_by_hand():
    # loads (3, 1, 2), mean 2: the bias steps by (-1, 1, 0) times the rate
    constraint = prepared(SelectionBiasConstraint(rate=0.1), 3)
    constraint.update(routing_of([3, 1, 2]))
    assert constraint.bias[0].tolist() == pytest.approx([-0.1, 0.1, 0.0])
    constraint.update(routing_of([6, 0, 0]))
    assert constraint.bias[0].tolist() == pytest.approx([-0.2, 0.2, 0.1])
    logits = torch.tensor([[1.0, 1.0, 1.0]])
    assert constraint.mask(logits, torch.tensor([0]))[0].tolist() == pytest.approx([0.8, 1.2, 1.1])


@pytest.mark.parametrize('kind', [RelativeImportanceConstraint, MeanImportanceConstraint, SelectionBiasConstraint])
def test_groups_keep_separate_states(kind):
    together = prepared(kind(), 3, 2)
    first, second = prepared(kind(), 3), prepared(kind(), 3)
    for one, two in [([3, 1, 2], [0, 0, 6]), ([2, 2, 2], [1, 1, 1]), ([0, 0, 0], [0, 0, 9])]:
        together.update(routing_of(one, two))
        first.update(routing_of(one))
        second.update(routing_of(two))
    logits = torch.zeros(3, 3)
    rows = together.mask(logits, torch.tensor([1, 0, 1]))
    torch.testing.assert_close(rows[1:2], first.mask(logits[:1], torch.tensor([0])))
    torch.testing.assert_close(rows[:1], second.mask(logits[:1], torch.tensor([0])))
    assert torch.equal(rows[0], rows[2])
    assert not torch.equal(rows[0], rows[1])


@pytest.mark.parametrize('kind', [RelativeImportanceConstraint, MeanImportanceConstraint])
def test_an_expert_at_the_threshold_itself_is_allowed(kind):
    constraint = prepared(kind(threshold=0), 2)  # at the start all experts are
    constraint.update(routing_of([2, 2]))
    assert forbidden(constraint, 2) == [[False, False]]


@pytest.mark.parametrize('kind', [RelativeImportanceConstraint, MeanImportanceConstraint])
def test_masks_act_in_training_only(kind):
    constraint = prepared(kind(threshold=0.1), 2)
    constraint.update(routing_of([4, 0]))
    assert forbidden(constraint, 2) == [[True, False]]
    constraint.eval()
    assert forbidden(constraint, 2) == [[False, False]]


def test_the_selection_bias_acts_in_evaluation_too(echo_gate, as_maps, route_rows):
    router = Router(echo_gate(2, 2), [SelectionBiasConstraint()], top_k=1).double()
    router.constraints['selection_bias'].bias.copy_(torch.tensor([[0.0, 1.0]]))
    for mode in (True, False):
        routing = route_rows(router.train(mode), as_maps([[0.5, 0.0]]))
        assert routing.indices.tolist() == [[1]]
        # weights come from the logits alone: 1 / (1 + e^.5)
        assert routing.weights.item() == pytest.approx(1 / (1 + 2.718281828459045**0.5))


def simulate(constraint, echo_gate, as_maps, route_rows, top_k: int, steps: int):
    """Trains nothing: the gate always prefers expert 0 to 1 to 2 to 3. Returns importance and mask of each step."""
    router = Router(echo_gate(4, 4), [constraint], top_k=top_k).double().train()
    maps = as_maps([[1.5, 1.0, 0.5, 0.0]] * 6)
    history = []
    for _ in range(steps):
        masked = torch.isneginf(constraint.mask(torch.zeros(1, 4), torch.tensor([0])))[0]
        importance = route_rows(router, maps).local_usage().importance[0]
        assert (importance[masked] == 0).all(), 'a forbidden expert got rows'
        assert router.collect() == {}
        history.append((importance, masked))
    return torch.stack([i for i, _ in history]), torch.stack([m for _, m in history])


def share_per_step(importance: torch.Tensor) -> torch.Tensor:
    """Mean over the steps of each expert's share: with K = 1 the weights of a step sum to less than its rows."""
    return (importance / importance.sum(1, keepdim=True)).mean(0)


@pytest.mark.parametrize('top_k', [1, 2])
def test_relative_importance_equalises_a_skewed_gate_in_the_long_run(top_k, echo_gate, as_maps, route_rows):
    constraint = RelativeImportanceConstraint(threshold=0.3)
    importance, masked = simulate(constraint, echo_gate, as_maps, route_rows, top_k, 100)
    assert importance[0, 3] == 0  # without a constraint expert 3 would never be used
    share = share_per_step(importance)
    torch.testing.assert_close(share, torch.full((4,), 0.25, dtype=torch.float64), rtol=0, atol=0.03)
    for expert in (0, 1):  # forbidden at times, and back again later
        times = masked[:, expert].nonzero().flatten()
        assert len(times) > 5
        assert (importance[times[0] :, expert] > 0).any()


def test_mean_importance_only_clips(echo_gate, as_maps, route_rows):
    constraint = MeanImportanceConstraint(threshold=0.1)
    importance, masked = simulate(constraint, echo_gate, as_maps, route_rows, 1, 200)
    share = share_per_step(importance)
    # experts 0 and 1 are held near 1/4 + 0.1, what is left goes to the next; nothing reaches for equality
    assert share.max() < 0.25 + 0.1 + 0.03
    assert share[0] > 0.3
    assert share[3] < 0.1
    assert masked[:, 0].any()
    assert not masked[:, 0].all()


def test_all_forbidden_means_none_is(echo_gate, as_maps, route_rows):
    router = Router(echo_gate(3, 3), [RelativeImportanceConstraint()], top_k=2).double().train()
    maps = as_maps([[0.0, 2.0, 1.0]])
    free = route_rows(router, maps)
    router.start_step()
    router.constraints['relative_importance'].relative.fill_(5.0)
    routing = route_rows(router, maps)
    assert torch.equal(routing.indices, free.indices)
    assert torch.equal(routing.weights, free.weights)


def hard_router(echo_gate, num_levels: int = 1) -> Router:
    kinds = [RelativeImportanceConstraint(), MeanImportanceConstraint(), SelectionBiasConstraint(rate=0.1)]
    over = 'level' if num_levels > 1 else 'all'
    return Router(echo_gate(3, 3), kinds, top_k=2, balance_over=over, num_levels=num_levels).double()


def states(router: Router) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in router.state_dict().items() if k.startswith('constraints.')}


def test_state_is_in_the_checkpoint_and_training_goes_on_from_it(echo_gate, as_maps, route_rows):
    torch.manual_seed(3)
    steps = torch.randn(20, 5, 3, dtype=torch.float64) + torch.tensor([1.0, 0.0, -1.0])

    def train(router: Router, part: torch.Tensor) -> list[list[list[int]]]:
        choices = []
        for logits in part:
            choices.append(route_rows(router.train(), as_maps(logits)).indices.tolist())
            router.collect()
        return choices

    whole = hard_router(echo_gate)
    expected = train(whole, steps)
    first = hard_router(echo_gate)
    head = train(first, steps[:10])
    assert set(states(first)) == {
        'constraints.relative_importance.relative',
        'constraints.mean_importance.mean',
        'constraints.mean_importance.steps',
        'constraints.selection_bias.bias',
    }
    second = hard_router(echo_gate)
    second.load_state_dict(first.state_dict())
    assert head + train(second, steps[10:]) == expected
    for name, value in states(whole).items():
        assert torch.equal(states(second)[name], value), name
    assert train(hard_router(echo_gate), steps[10:]) != expected[10:]  # the state matters


def test_state_moves_once_per_collect_and_never_in_evaluation(echo_gate, as_maps, route_rows):
    parts = torch.randn(4, 5, 3, dtype=torch.float64)
    many, one = hard_router(echo_gate).train(), hard_router(echo_gate).train()
    for logits in parts:
        route_rows(many, as_maps(logits))
    assert all((value == 0).all() for value in states(many).values())  # not before the step is collected
    many.collect()
    route_rows(one, as_maps(parts.flatten(0, 1)))
    one.collect()
    for name, value in states(one).items():
        torch.testing.assert_close(states(many)[name], value)
    assert many.constraints['mean_importance'].steps.tolist() == [1]
    before = states(many)
    many.eval()
    route_rows(many, as_maps(parts[0]))
    assert many.collect() == {}
    for name, value in before.items():
        assert torch.equal(states(many)[name], value)


def test_balance_over_level_keeps_a_state_for_each_level(echo_gate, as_maps, route_rows):
    # level 0 always goes to experts 0 and 1, level 1 to 1 and 2: inside a level the unused expert lags behind
    router = hard_router(echo_gate, num_levels=2).train()
    route_rows(router, as_maps([[3.0, 3.0, 0.0]] * 4))
    route_rows(router, as_maps([[0.0, 3.0, 3.0]] * 4))
    router.collect()
    # importance (2, 2, 0) and (0, 2, 2) per level, mean 4/3
    relative = router.constraints['relative_importance'].relative
    torch.testing.assert_close(relative, torch.tensor([[0.5, 0.5, -1.0], [-1.0, 0.5, 0.5]], dtype=torch.float64))
    # the next step: level 0 may use expert 2 alone, level 1 expert 0 alone
    assert route_rows(router, as_maps([[3.0, 3.0, 0.0]])).indices.tolist() == [[2, 3]]
    assert route_rows(router, as_maps([[0.0, 3.0, 3.0]])).indices.tolist() == [[0, 3]]
