"""Mixtures against naive sums in float64."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck

from moe_det.routing import mix_linear, mix_probabilities

INF = float('inf')


def weights_with_gaps(rows: int, experts: int, total: float) -> torch.Tensor:
    """(R, K) weights that sum to ``total``; the last expert of the first row is not chosen."""
    weights = torch.rand(rows, experts, dtype=torch.float64) + 0.1
    if experts > 1:
        weights[0, -1] = 0
    return total * weights / weights.sum(1, keepdim=True)


@pytest.mark.parametrize('shape', [(), (5,), (3, 4, 2)])
@pytest.mark.parametrize('experts', [1, 2, 4])
@pytest.mark.parametrize('total', [1.0, 0.6])
def test_linear_is_the_weighted_sum(shape, experts, total):
    outputs = torch.randn(3, experts, *shape, dtype=torch.float64)
    weights = weights_with_gaps(3, experts, total)
    mixed = mix_linear(outputs, weights.log())
    for row in range(3):
        expected = sum(weights[row, k] * outputs[row, k] for k in range(experts))
        torch.testing.assert_close(mixed[row], expected)


@pytest.mark.parametrize('experts', [1, 2, 4])
@pytest.mark.parametrize('total', [1.0, 0.6, 1e-3, 1 - 1e-9])
def test_probabilities_are_the_weighted_mean_of_sigmoids(experts, total):
    outputs = 6 * torch.randn(4, experts, 2, 3, dtype=torch.float64)
    weights = weights_with_gaps(4, experts, total)
    mixed = mix_probabilities(outputs, weights.log(), sums_to_one=total == 1)
    p = torch.einsum('rk,rkyx->ryx', weights, torch.sigmoid(outputs))
    torch.testing.assert_close(mixed, torch.log(p / (1 - p)), rtol=1e-8, atol=1e-8)


def test_probabilities_by_hand():
    # .25 * sigmoid(log 3) + .75 * sigmoid(-log 4) = .25 * .75 + .75 * .2 = .3375; with half the weights .16875
    outputs = torch.tensor([[math.log(3), -math.log(4)]], dtype=torch.float64)
    log_weights = torch.tensor([[0.25, 0.75]], dtype=torch.float64).log()
    assert mix_probabilities(outputs, log_weights).item() == pytest.approx(math.log(0.3375 / 0.6625))
    half = mix_probabilities(outputs, log_weights - math.log(2), sums_to_one=False)
    assert half.item() == pytest.approx(math.log(0.16875 / 0.83125))


@pytest.mark.parametrize('dtype', [torch.float32, torch.float16, torch.bfloat16])
def test_extreme_logits_stay_finite_and_right(dtype):
    values = torch.tensor([-80.0, -30.0, 0.0, 30.0, 80.0])
    outputs = torch.cartesian_prod(values, values).to(dtype).requires_grad_()
    log_weights = torch.tensor([[0.5, 0.5]]).log().expand(25, 2)
    for sums_to_one, scale in ((True, 0.0), (False, -1.0)):
        mixed = mix_probabilities(outputs, log_weights + scale, sums_to_one)
        assert mixed.dtype == torch.float32
        # 1 - p = sum w sigmoid(-z) + (1 - sum w): no cancellation in float64
        z, w = outputs.detach().double(), (log_weights + scale).double().exp()
        p, q = (w * torch.sigmoid(z)).sum(1), (w * torch.sigmoid(-z)).sum(1)
        if not sums_to_one:
            q = q + 1 - w.sum(1)
        torch.testing.assert_close(mixed.double(), p.log() - q.log(), rtol=1e-5, atol=1e-5)
        (gradient,) = torch.autograd.grad(mixed.sum(), outputs)
        assert torch.isfinite(gradient).all()


def in_log_domain(outputs: torch.Tensor, weights: torch.Tensor, rest: torch.Tensor) -> torch.Tensor:
    """The mixture of (R, K, ...) logits by torch's own operators and gradients, in float64."""
    shaped = weights.log().reshape(*weights.shape, *[1] * (outputs.dim() - 2))
    positive = torch.logsumexp(shaped + F.logsigmoid(outputs), 1)
    negative = torch.logsumexp(shaped + F.logsigmoid(-outputs), 1)
    return positive - torch.logaddexp(negative, rest.log().reshape(-1, *[1] * (outputs.dim() - 2)))


@pytest.mark.parametrize('scale', [1.0, 65536.0])  # the loss scale of half precision
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize('total', [1.0, 0.6])
@pytest.mark.parametrize('experts', [1, 2, 3])
def test_values_and_gradients_are_those_of_the_log_domain(experts, total, dtype, scale):
    torch.manual_seed(0)
    outputs = (12 * torch.randn(5, experts, 4, 6)).clamp(-80, 80).to(dtype)
    outputs[0], outputs[1], outputs[2, 0] = 80.0, -80.0, -80.0  # saturated, of one sign or mixed
    outputs.requires_grad_()
    log_weights = weights_with_gaps(5, experts, total).log()
    log_weights = log_weights.to(torch.promote_types(dtype, torch.float32)).requires_grad_()
    mixed = mix_probabilities(outputs, log_weights, sums_to_one=total == 1)
    z, log_w = (x.detach().double().requires_grad_() for x in (outputs, log_weights))
    rest = 1 - log_w.exp().sum(1) if total < 1 else torch.zeros(5, dtype=torch.float64)
    expected = in_log_domain(z, log_w.exp(), rest)
    torch.testing.assert_close(mixed.double(), expected, rtol=1e-5, atol=1e-5)

    gradient = scale * torch.randn(expected.shape, dtype=torch.float64)
    expected.backward(gradient)
    mixed.backward(gradient.to(mixed.dtype))
    exact = {'rtol': 1e-2 if dtype == torch.bfloat16 else 1e-4, 'atol': 1e-6 * scale}
    torch.testing.assert_close(outputs.grad.double(), z.grad, **exact)
    chosen = log_w > -INF
    if total == 1 and experts == 1:
        return  # the log-weight is 0 by definition: its gradient only joins the gate to the graph
    torch.testing.assert_close(log_weights.grad[chosen].double(), log_w.grad[chosen], rtol=1e-4, atol=1e-3 * scale)
    assert not log_weights.grad[~chosen].any()


def test_beyond_a_sigmoid_that_rounds_to_0_or_1_logits_keep_their_sign_and_gradient():
    outputs = torch.tensor([[300.0, 90.0], [-300.0, -90.0], [300.0, -300.0]], requires_grad=True)
    mixed = mix_probabilities(outputs, torch.tensor([[0.5, 0.5]]).log().expand(3, 2))
    mixed.sum().backward()
    assert mixed[0] > 84 and mixed[1] < -84 and mixed[2].item() == pytest.approx(0)
    assert (outputs.grad[:2].sum(1) > 0.9).all() and torch.isfinite(outputs.grad).all()


@pytest.mark.parametrize('weights', [[1.0, 0.0], [1.0, 1e-30], [0.75, 0.0]])
@pytest.mark.parametrize('logit', [-85.0, 85.0])
@pytest.mark.parametrize('scale', [1.0, 65536.0])
def test_the_gate_has_a_finite_gradient_where_many_extreme_logits_agree(weights, logit, scale):
    # 1/p is 1e37 there: a sum of 1e5 of them overflows for the expert that is absent, or nearly so
    outputs = torch.zeros(1, 2, 100_000)
    outputs[:, 0] = logit
    log_weights = torch.tensor([weights]).log()
    sums_to_one = sum(weights) == 1
    found, exact = (x.clone().requires_grad_() for x in (log_weights, log_weights.double()))
    mixed = mix_probabilities(outputs, found, sums_to_one)
    mixed.backward(torch.full_like(mixed, scale))
    rest = torch.zeros(1, dtype=torch.float64) if sums_to_one else 1 - exact.exp().sum(1)
    expected = in_log_domain(outputs.double(), exact.exp(), rest)
    expected.backward(torch.full_like(expected, scale))
    wanted = exact.grad.where(log_weights > -INF, torch.zeros(()).double())
    torch.testing.assert_close(found.grad.double(), wanted, rtol=1e-3, atol=1e-6 * scale * mixed.numel())


def test_training_and_inference_give_the_same_bits():
    outputs, log_weights = 5 * torch.randn(3, 2, 7), torch.tensor([[0.3, 0.6]]).log().expand(3, 2)
    with torch.no_grad():
        inferred = mix_probabilities(outputs, log_weights, sums_to_one=False)
    assert torch.equal(mix_probabilities(outputs.clone().requires_grad_(), log_weights, False), inferred)


def test_a_weight_that_rounds_to_1_is_the_same_among_several():
    # two experts, one of them with a weight that rounds to 1, as when all experts run at the top-1 weights
    outputs = torch.tensor([[[19.0], [0.0]], [[-19.0], [3.0]], [[0.0], [1.0]]])
    log_weights = torch.tensor([[0.0, -INF]]).repeat(3, 1)
    several = mix_probabilities(outputs, log_weights, sums_to_one=False)
    alone = mix_probabilities(outputs[:, :1], log_weights[:, :1], sums_to_one=False)
    torch.testing.assert_close(several, alone)


def test_a_row_without_any_expert_has_no_object_and_no_gradient():
    outputs = torch.randn(2, 2, 3, requires_grad=True)
    log_weights = torch.tensor([[-INF, -INF], [-1.0, -2.0]], requires_grad=True)
    mixed = mix_probabilities(outputs, log_weights, sums_to_one=False)
    assert (mixed[0] == -INF).all() and torch.isfinite(mixed[1]).all()
    mixed.backward(torch.ones_like(mixed))
    assert not outputs.grad[0].any() and not log_weights.grad[0].any()
    assert outputs.grad[1].all()


def test_a_saturated_gate_gives_finite_logits():
    # K = 1 and a weight that rounds to 1: nothing is left for "no object"
    outputs = torch.tensor([[80.0], [-80.0], [0.0]], requires_grad=True)
    log_weights = torch.zeros(3, 1, requires_grad=True)
    mixed = mix_probabilities(outputs, log_weights, sums_to_one=False)
    mixed.sum().backward()
    assert torch.isfinite(mixed).all()
    assert mixed[0] > 15  # p = 1 - 2^-24 at least
    assert mixed[1].item() == pytest.approx(-80)
    assert mixed[2].item() == pytest.approx(0, abs=1e-6)
    assert torch.isfinite(outputs.grad).all()
    assert torch.isfinite(log_weights.grad).all()


@pytest.mark.parametrize('mixture', [mix_linear, mix_probabilities])
def test_identical_experts_give_their_own_output(mixture):
    output = 3 * torch.randn(4, 1, 2, 5, dtype=torch.float64)
    mixed = mixture(output.expand(4, 3, 2, 5), weights_with_gaps(4, 3, 1.0).log(), True)
    torch.testing.assert_close(mixed, output[:, 0], rtol=0, atol=1e-12)


@pytest.mark.parametrize('mixture', [mix_linear, mix_probabilities])
@pytest.mark.parametrize('sums_to_one', [True, False])
@pytest.mark.parametrize('experts', [1, 3])
def test_gradients_by_finite_differences(mixture, sums_to_one, experts):
    outputs = torch.randn(2, experts, 3, dtype=torch.float64, requires_grad=True)
    logits = torch.randn(2, experts, dtype=torch.float64, requires_grad=True)

    def mix(z, h):
        # without sums_to_one the weights are a part of a softmax over one expert more
        if sums_to_one:
            log_weights = torch.log_softmax(h, 1)
        else:
            log_weights = torch.log_softmax(torch.cat([h, h.new_zeros(2, 1)], 1), 1)[:, :-1]
        return mixture(z, log_weights, sums_to_one)

    assert gradcheck(mix, (outputs, logits))


@pytest.mark.parametrize('experts', [1, 3])
def test_training_keeps_the_logits_and_no_more_than_the_mixture(experts):
    outputs, kept = torch.randn(2, experts, 3, 50, requires_grad=True), {}
    log_weights = torch.tensor([[-2.0] * experts, [-3.0] * experts], requires_grad=True)

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        mixed = mix_probabilities(outputs, log_weights, False)
    assert mixed.requires_grad and outputs.untyped_storage().data_ptr() in kept
    large = sorted(numel for numel in kept.values() if numel > 2 * experts)
    assert large == ([outputs.numel()] if experts == 1 else [mixed.numel(), outputs.numel()])


@pytest.mark.parametrize('mixture', [mix_linear, mix_probabilities])
@pytest.mark.parametrize('sums_to_one', [True, False])
def test_experts_that_were_not_chosen_pass_nothing_on(mixture, sums_to_one):
    outputs = torch.tensor([[[1.0], [0.0]], [[2.0], [3.0]]], dtype=torch.float64, requires_grad=True)
    log_weights = torch.tensor([[math.log(0.5), -INF], [-INF, math.log(0.5)]], dtype=torch.float64)
    mixed = mixture(outputs, log_weights.requires_grad_(), sums_to_one)
    mixed.sum().backward()
    assert outputs.grad[0, 1] == outputs.grad[1, 0] == 0
    assert outputs.grad[0, 0] != 0
    assert torch.isfinite(log_weights.grad).all()
