"""Sample similarity against a double loop over pairs and experts, values by hand, and its limits."""

from __future__ import annotations

import math

import pytest
import torch
from torch.autograd import gradcheck

from moe_det.routing import KLConstraint, Router, RowSamples, SampleSimilarityConstraint, rows_of
from moe_det.routing.similarity import pairwise_distances

NAMED = {'beta_s': 0.3, 'beta_d': 0.7}


def reference(probs, points, groups, num_groups, beta_s, beta_d, normalisation, distance_scale='largest') -> float:
    """The mean over groups with rows of L_s, pair by pair and expert by expert, in plain Python."""
    experts, values = len(probs[0]), []
    for group in range(num_groups):
        rows = [r for r, of in enumerate(groups) if of == group]
        if not rows:
            continue
        largest = max(math.dist(points[a], points[b]) for a in rows for b in rows) if distance_scale == 'largest' else 1
        same = different = 0.0
        for a in rows:
            for b in rows:
                distance = math.dist(points[a], points[b]) / largest if largest else 0.0
                for e in range(experts):
                    for f in range(experts):
                        product = probs[a][e] * probs[b][f] * distance
                        if e == f:
                            same += product / experts
                        else:
                            different += product / (experts**2 - experts)
        count = len(rows) ** 2
        values.append(beta_s * same / (count if normalisation == 'pairs' else 1) - beta_d * different / count)
    return sum(values) / len(values)


def with_points(routing, points: torch.Tensor):
    """The routing of rows of one image each, with these pooled features."""
    routing.samples = RowSamples(torch.arange(len(points)), len(points), points)
    return routing


@pytest.mark.parametrize('distance_scale', ['largest', 'none'])
@pytest.mark.parametrize('normalisation', ['pairs', 'published'])
@pytest.mark.parametrize(('experts', 'groups', 'num_groups'), [(3, [0] * 9, 1), (4, [0, 2, 2, 0, 2, 0, 2, 2, 3], 5)])
def test_equals_the_double_loop(experts, groups, num_groups, normalisation, distance_scale, routing_from):
    logits = torch.randn(9, experts, dtype=torch.float64)
    points = 3 * torch.randn(9, 5, dtype=torch.float64)
    routing = with_points(routing_from(logits, 2, groups, num_groups), points)
    named = {**NAMED, 'normalisation': normalisation, 'distance_scale': distance_scale}
    constraint = SampleSimilarityConstraint(**named, weight=1.5)
    expected = reference(routing.probs.tolist(), points.tolist(), groups, num_groups, **named)
    assert abs(expected) > 1e-3
    assert constraint.loss(routing).item() == pytest.approx(1.5 * expected, rel=1e-9)


def test_by_hand(routing_from):
    # rows at 0, 3 and 4 on a line: D = 3/4, 1, 1/4. p = (1/2, 1/2), (3/4, 1/4), (1/4, 3/4): S01 = S02 = 1/2, S12 = 3/8
    # P_same = 2 (3/8 + 1/2 + 3/32) / 2 = 31/32, P_diff = 2 (3/8 + 1/2 + 5/32) / 2 = 33/32
    probs = torch.tensor([[0.5, 0.5], [0.75, 0.25], [0.25, 0.75]], dtype=torch.float64)
    routing = with_points(routing_from(probs.log(), 1), torch.tensor([[0.0], [3.0], [4.0]]))
    assert SampleSimilarityConstraint(1, 0).loss(routing).item() == pytest.approx(31 / 32 / 9)
    assert SampleSimilarityConstraint(0, 1).loss(routing).item() == pytest.approx(-33 / 32 / 9)
    published = SampleSimilarityConstraint(1, 1, normalisation='published', weight=2)
    assert published.loss(routing).item() == pytest.approx(2 * (31 / 32 - 33 / 32 / 9))
    # the largest distance is 4
    as_they_are = SampleSimilarityConstraint(1, 0, distance_scale='none')
    assert as_they_are.loss(routing).item() == pytest.approx(4 * 31 / 32 / 9)


def test_separating_distant_rows_is_better_than_mixing_them(routing_from):
    points = torch.tensor([[0.0], [0.1], [5.0], [5.1]], dtype=torch.float64)
    near, far = ([20.0, 0.0], [0.0, 20.0])
    values = {}
    for name, logits in {'apart': [near, near, far, far], 'mixed': [near, far, near, far], 'one': [near] * 4}.items():
        routing = with_points(routing_from(torch.tensor(logits, dtype=torch.float64), 1), points)
        values[name] = SampleSimilarityConstraint().loss(routing).item()
    assert values['apart'] < values['mixed'] < values['one']


def test_gradient_by_finite_differences(routing_from):
    logits = torch.randn(6, 3, dtype=torch.float64).requires_grad_()
    points = torch.randn(6, 4, dtype=torch.float64)
    constraint = SampleSimilarityConstraint(**NAMED)
    assert gradcheck(lambda h: constraint.loss(with_points(routing_from(h, 2, [0, 1] * 3, 3), points)), logits)


@pytest.mark.parametrize(
    ('rows', 'experts', 'groups'), [(1, 1, 1), (4, 1, 2), (1, 3, 1), (0, 3, 2), (3, 2, 5), (2, 2, 1)]
)
@pytest.mark.parametrize('spread', [0.0, 1e-20, 1e4])
def test_finite_in_the_limits(rows, experts, groups, spread, routing_from):
    logits = (1e4 * torch.randn(rows, experts)).requires_grad_()
    routing = routing_from(logits, 1, [i % groups for i in range(rows)], groups)
    if rows:
        with_points(routing, spread * torch.randn(rows, 3))
    loss = SampleSimilarityConstraint().loss(routing)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert torch.isfinite(loss) and torch.isfinite(gradient).all()
    if rows < 2 or spread == 0:
        assert loss == 0


def test_distances_survive_a_common_offset():
    points = torch.randn(40, 6, dtype=torch.float64)
    expected = torch.tensor([[math.dist(a, b) for b in points.tolist()] for a in points.tolist()])
    torch.testing.assert_close(pairwise_distances(points), expected, check_dtype=False)
    shifted = (points + 1000).float()
    torch.testing.assert_close(pairwise_distances(shifted), expected, rtol=2e-3, atol=2e-3)
    assert (pairwise_distances(shifted).diagonal() == 0).all()


def similarity_router(echo_gate, unit='level', over='all', levels=1, **settings) -> Router:
    constraint = SampleSimilarityConstraint(**NAMED, **settings)
    router = Router(
        echo_gate(3, 3), [constraint], top_k=2, unit=unit, balance_over=over, num_levels=levels, noise=False
    )
    return router.double().train()


@pytest.mark.parametrize('over', ['all', 'level'])
@pytest.mark.parametrize(('unit', 'grid'), [('level', 1), ('patch', 2)])
def test_a_step_compares_the_pooled_rows_of_its_calls(unit, grid, over, echo_gate, route_rows):
    router = similarity_router(echo_gate, unit, over, levels=2)
    maps = [torch.randn(3, 3, 4, 4, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    probs, points, groups = [], [], []
    for level, x in enumerate(maps):
        routing = route_rows(router, x, unit, grid)
        probs += routing.probs.tolist()
        groups += [level if over == 'level' else 0] * len(routing.logits)
        for image in x.detach():
            # windows of a 2x2 grid over 4 pixels with one pixel of halo
            cuts = [slice(0, 3), slice(1, 4)] if unit == 'patch' else [slice(None)]
            points += [image[:, a, b].mean((1, 2)).tolist() for a in cuts for b in cuts]
    loss = router.collect()['similarity']
    expected = reference(probs, points, groups, 2, **NAMED, normalisation='pairs')
    assert loss.item() == pytest.approx(expected, rel=1e-9)
    assert torch.autograd.grad(loss, router.gate.scale)[0].abs().max() > 1e-5


def test_no_gradient_reaches_the_maps_through_their_distances(echo_gate, route_rows):
    router = similarity_router(echo_gate)
    maps = torch.randn(3, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    routing = route_rows(router, maps)
    probs = torch.randn(3, 3, dtype=torch.float64).softmax(1).requires_grad_()
    points = maps.mean((2, 3))
    assert torch.autograd.grad(torch.cdist(points, points).sum(), maps)[0].abs().max() > 0.01
    # with probabilities that do not depend on the maps, nothing is left
    routing.logits = probs.log()
    loss = router.constraints['similarity'].loss(routing)
    of_probs, of_maps = torch.autograd.grad(loss, [probs, maps], allow_unused=True)
    assert of_probs.abs().max() > 1e-4 and of_maps is None
    router.start_step()


def test_one_decision_for_all_levels_is_compared_by_the_mean_of_the_levels(echo_gate):
    router = similarity_router(echo_gate, 'image', levels=2)
    maps = [torch.randn(4, 3, size, size, dtype=torch.float64) for size in (4, 2)]
    routing = router(*rows_of(maps, 'image'))
    points = sum(x.mean((2, 3)) for x in maps) / 2
    expected = reference(routing.probs.tolist(), points.tolist(), [0] * 4, 1, **NAMED, normalisation='pairs')
    assert router.collect()['similarity'].item() == pytest.approx(expected, rel=1e-9)


def test_supplied_inputs_reach_every_row_of_their_image(echo_gate, route_rows, as_maps):
    router = similarity_router(echo_gate, over='level', levels=2, distance='inputs')
    images = torch.randn(3, 2, 4, 4, dtype=torch.float64)
    probs = []
    for _ in range(2):
        probs += route_rows(router, as_maps(torch.randn(3, 3))).probs.tolist()
    router.supply('inputs', images)
    router.supply('box_sizes', images)  # nobody asked
    points = images.flatten(1).tolist()
    expected = reference(probs, points * 2, [0] * 3 + [1] * 3, 2, **NAMED, normalisation='pairs')
    assert router.collect()['similarity'].item() == pytest.approx(expected, rel=1e-9)
    for _ in range(2):
        route_rows(router, as_maps(torch.randn(3, 3)))
    with pytest.raises(ValueError, match=r"SampleSimilarityConstraint\(distance='inputs'\).*Router.supply\('inputs'"):
        router.collect()  # the last step's images are gone
    for _ in range(2):
        route_rows(router, as_maps(torch.randn(3, 3)))
    router.supply('inputs', images[:2])
    with pytest.raises(ValueError, match='for 2 images, the rows come from 3'):
        router.collect()


def test_values_supplied_for_rows_belong_to_their_row(echo_gate):
    router = similarity_router(echo_gate, 'patch', 'level', levels=2, distance='inputs')
    # 2 images, 2x2 patches on the first map, 1 on the second: 10 rows
    maps = [torch.randn(2, 3, size, size, dtype=torch.float64) for size in (4, 1)]
    routing = router(*rows_of(maps, 'patch', 2))
    values = torch.randn(10, 3, dtype=torch.float64)
    router.supply('inputs', values, per_row=True)
    groups = [0] * 8 + [1] * 2
    expected = reference(routing.probs.tolist(), values.tolist(), groups, 2, **NAMED, normalisation='pairs')
    assert router.collect()['similarity'].item() == pytest.approx(expected, rel=1e-9)
    router(*rows_of(maps, 'patch', 2))
    router.supply('inputs', values[:2], per_row=True)
    with pytest.raises(ValueError, match='supplied for 2 rows, the step has 10'):
        router.collect()


def test_nothing_is_computed_or_kept_for_constraints_that_do_not_ask(echo_gate, route_rows, as_maps):
    router = Router(echo_gate(3, 3), [KLConstraint()], top_k=2).double().train()
    router.supply('inputs', torch.ones(2, 1))
    assert not router.constraints.asked and not router.step.supplied
    assert route_rows(router, as_maps(torch.randn(2, 3))).samples is None
    asking = similarity_router(echo_gate)
    assert route_rows(asking.eval(), as_maps(torch.randn(2, 3))).samples is None


@pytest.mark.parametrize(
    ('bad', 'message'),
    [
        ({'beta_s': -1}, 'beta_s=-1'),
        ({'beta_d': float('nan')}, 'beta_d=nan'),
        ({'distance': 'pixels'}, "distance='pixels': expected one of features, inputs, box_sizes"),
        ({'normalisation': 'sum'}, "normalisation='sum': expected one of pairs, published"),
        ({'distance_scale': 1.0}, 'distance_scale=1.0: expected one of largest, none'),
        ({'weight': -1}, 'weight=-1'),
    ],
)
def test_bad_values(bad, message):
    with pytest.raises(ValueError, match=message):
        SampleSimilarityConstraint(**bad)
