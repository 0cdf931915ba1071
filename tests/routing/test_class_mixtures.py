"""Mixtures of classifiers and their losses against their equations, number by number."""

from __future__ import annotations

import math

import pytest
import torch
from torch.autograd import gradcheck

from moe_det.routing import (
    dual_temperature_losses,
    jacobs_loss,
    mix_categorical,
    mix_top1_published,
    mixture_nll,
    next_temperature,
    sample_experts,
    select,
)

ROWS, EXPERTS, CLASSES = 5, 4, 3


def softmax(values: list[float]) -> list[float]:
    total = sum(map(math.exp, values))
    return [math.exp(v) / total for v in values]


@pytest.fixture
def parts() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gate logits, class logits and labels."""
    logits = torch.randn(ROWS, EXPERTS, dtype=torch.float64)
    outputs = 2 * torch.randn(ROWS, EXPERTS, CLASSES, dtype=torch.float64)
    return logits, outputs, torch.tensor([0, 2, 1, 1, 0])


@pytest.mark.parametrize('top_k', [1, 2, 4])
def test_output_mixture(top_k, parts):
    logits, outputs, labels = parts
    indices, log_weights = select(logits, logits, top_k, top_k > 1)
    chosen = outputs.gather(1, indices[:, :, None].expand(-1, -1, CLASSES))
    found = mix_categorical(chosen, log_weights, top_k > 1)
    losses = []
    for r in range(ROWS):
        h = logits[r].tolist()
        order = sorted(range(EXPERTS), key=lambda e: -h[e])[:top_k]
        weights = softmax([h[e] for e in order]) if top_k > 1 else [max(softmax(h))]
        o = [softmax(outputs[r, e].tolist()) for e in order]
        y = [sum(w * p[c] for w, p in zip(weights, o, strict=True)) + (1 - sum(weights)) / 3 for c in range(CLASSES)]
        assert found[r].exp().tolist() == pytest.approx(y)
        assert sum(y) == pytest.approx(1)
        losses.append(-math.log(y[labels[r]] + 1e-2))
    assert mixture_nll(found, labels, 1e-2).item() == pytest.approx(sum(losses) / ROWS)
    assert mixture_nll(found, labels).item() == pytest.approx(-found[range(ROWS), labels].mean().item())


def test_published_top1_by_hand():
    # o = (3/4, 1/4), w = 0.8: softmax(0.6, 0.2)
    outputs = torch.tensor([[[math.log(3), 0.0]]], dtype=torch.float64)
    found = mix_top1_published(outputs, torch.tensor([[0.8]], dtype=torch.float64).log())
    assert found.exp().tolist()[0] == pytest.approx(softmax([0.6, 0.2]))
    with pytest.raises(ValueError, match='one expert per row, got 2'):
        mix_top1_published(torch.zeros(1, 2, 3), torch.zeros(1, 2))


def test_jacobs_loss(parts):
    logits, outputs, labels = parts
    total = 0.0
    for r in range(ROWS):
        p = softmax(logits[r].tolist())
        ce = [-math.log(softmax(outputs[r, e].tolist())[labels[r]]) for e in range(EXPERTS)]
        total -= math.log(sum(p[e] * math.exp(-0.5 * ce[e]) for e in range(EXPERTS))) / ROWS
    assert jacobs_loss(outputs, logits.log_softmax(1), labels).item() == pytest.approx(total)


def test_gradients_by_finite_differences(parts):
    logits, outputs, labels = parts
    logits.requires_grad_(), outputs.requires_grad_()
    assert gradcheck(lambda h, z: jacobs_loss(z, h.log_softmax(1), labels), (logits, outputs))
    assert gradcheck(lambda h, z: mix_categorical(z, h.log_softmax(1)), (logits, outputs))
    assert gradcheck(lambda h, z: mix_categorical(z[:, :1], h.log_softmax(1)[:, :1], False), (logits, outputs))


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_extremes_stay_finite(dtype):
    outputs = torch.tensor([[[90.0, -90.0], [-90.0, 90.0]], [[90.0, -90.0], [0.0, 0.0]]], dtype=dtype)
    outputs.requires_grad_()
    log_weights = torch.tensor([[0.0, float('-inf')], [-50.0, 0.0]])
    for sums_to_one in (True, False):
        log_y = mix_categorical(outputs, log_weights, sums_to_one)
        assert log_y.dtype == torch.float32
        labels = torch.tensor([1, 0])
        loss = mixture_nll(log_y, labels, 1e-7) + jacobs_loss(outputs, log_weights, labels)
        (gradient,) = torch.autograd.grad(loss, outputs)
        assert torch.isfinite(loss) and torch.isfinite(gradient).all()
        assert gradient[0, 1].abs().max() == 0  # an expert without weight
    assert mixture_nll(mix_categorical(outputs, log_weights)[:1], torch.tensor([1]), 1e-7).item() == pytest.approx(
        -math.log(1e-7), rel=1e-4
    )


def test_experts_are_drawn_with_their_probability():
    probs = torch.tensor([[0.1, 0.6, 0.3, 0.0]])
    generator = torch.Generator().manual_seed(0)
    drawn = sample_experts(probs.log().expand(20000, 4), generator)
    assert drawn.shape == (20000, 1)
    share = torch.bincount(drawn[:, 0], minlength=4) / 20000
    # five standard deviations of a share: 5 * sqrt(.25 / 20000)
    assert (share - probs[0]).abs().max() < 0.018 and share[3] == 0


def test_dual_temperature(parts):
    logits, outputs, labels = parts
    logits.requires_grad_(), outputs.requires_grad_()
    of_experts, of_gate = dual_temperature_losses(logits, outputs, lambda y: mixture_nll(y, labels), 4.0)
    values = []
    for temperature in (4.0, 1.0):
        total = 0.0
        for r in range(ROWS):
            p = softmax([h / temperature for h in logits[r].tolist()])
            y = sum(p[e] * softmax(outputs[r, e].tolist())[labels[r]] for e in range(EXPERTS))
            total -= math.log(y) / ROWS
        values.append(total)
    assert [of_experts.item(), of_gate.item()] == pytest.approx(values)
    assert abs(values[0] - values[1]) > 1e-3
    # each loss reaches its own part alone: one backward of the sum equals two separate steps
    gate, experts = torch.autograd.grad(of_experts + of_gate, (logits, outputs))
    y_1 = mixture_nll(mix_categorical(outputs, logits.log_softmax(1)), labels)
    torch.testing.assert_close(gate, torch.autograd.grad(y_1, logits)[0])
    y_t = mixture_nll(mix_categorical(outputs, (logits / 4).log_softmax(1)), labels)
    torch.testing.assert_close(experts, torch.autograd.grad(y_t, outputs)[0])
    with pytest.raises(ValueError, match='temperature=0'):
        dual_temperature_losses(logits, outputs, torch.sum, 0)


def test_decay_of_the_temperature():
    # 6 / (1 + .5 * 1) = 4, 4 / (1 + .5 * 2) = 2
    assert next_temperature(next_temperature(6.0, 1, 0.5), 2, 0.5) == pytest.approx(2)
