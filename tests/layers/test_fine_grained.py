"""Fine-grained and shared experts with the weights and the balance of DeepSeekMoE (arXiv 2401.06066)."""

from __future__ import annotations

import pytest
import torch
from mmcv.cnn.bricks.transformer import FFN
from small_models import batch, detector, losses_of
from torch import Tensor

from moe_det.errors import MoEConfigError
from moe_det.layers import MoEFFN, MoESettings
from moe_det.routing import RowLayout, SwitchConstraint
from moe_det.routing.shared_experts import SharedExperts

CHANNELS, EXPERTS, CHOSEN, SHARED, ALPHA = 6, 7, 2, 2, 0.003


def layer_of(**changes) -> MoEFFN:
    torch.manual_seed(0)
    dense = FFN(embed_dims=CHANNELS, feedforward_channels=12, num_fcs=2)
    moe = dict(
        num_experts=EXPERTS,
        top_k=CHOSEN,
        shared_expert=SHARED,
        width=0.25,
        weighting='full_softmax',
        noise=False,
        constraint=dict(type='SwitchConstraint', weight=ALPHA),
    )
    return MoEFFN(dense, 'ffn', **{**moe, **changes}).double()


def ffn(expert: torch.nn.Module, x: Tensor) -> Tensor:
    """An expert by its weights."""
    names = ('layers.0.0.weight', 'layers.0.0.bias', 'layers.1.weight', 'layers.1.bias')
    first, offset, last, shift = (expert.get_parameter(name) for name in names)
    return last @ (first @ x + offset).clamp_min(0) + shift


def by_the_paper(layer: MoEFFN, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs, equations 9 to 11, and the expert-level balance loss, equations 12 to 14, token by token."""
    gate = layer.router.gate.fc
    outputs, counts, sums = [], [0] * EXPERTS, torch.zeros(EXPERTS, dtype=torch.float64)
    for token in tokens:
        logits = gate.weight @ token + gate.bias
        scores = logits.exp() / logits.exp().sum()
        total = token.clone()
        for expert in layer.expert_group.shared:
            total = total + ffn(expert, token)
        for expert in sorted(range(EXPERTS), key=lambda e: -scores[e].item())[:CHOSEN]:
            total = total + scores[expert] * ffn(layer.expert_group.experts[expert], token)
            counts[expert] += 1
        sums = sums + scores
        outputs.append(total)
    loss = 0
    for expert in range(EXPERTS):
        share = EXPERTS / (CHOSEN * len(tokens)) * counts[expert]
        loss = loss + ALPHA * share * sums[expert] / len(tokens)
    return torch.stack(outputs), loss


@pytest.mark.parametrize('dispatch', ['sorted', 'all'])
def test_outputs_balance_and_gradients_equal_the_equations(dispatch):
    layer = layer_of(dispatch=dispatch).train()
    x = torch.randn(2, 9, CHANNELS, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 3
    output, (loss,) = layer(x), layer.router.collect().values()
    expected, expected_loss = by_the_paper(layer, x.flatten(0, 1))
    torch.testing.assert_close(output, expected.reshape(x.shape))
    torch.testing.assert_close(loss, expected_loss)
    parameters = list(layer.parameters())
    ours = torch.autograd.grad(output.square().sum() + 100 * loss, parameters, retain_graph=True)
    theirs = torch.autograd.grad(expected.square().sum() + 100 * expected_loss, parameters, allow_unused=True)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, torch.zeros_like(one) if other is None else other)


def test_weights_stay_below_one_and_are_not_normalised_again():
    router = layer_of().router.eval()
    x = torch.randn(5, CHANNELS, 1, 1, dtype=torch.float64)
    routing = router([x], RowLayout('token', 1, (5,)))
    expected = router.gate(x).softmax(1).sort(1, descending=True).values[:, :CHOSEN]
    torch.testing.assert_close(routing.weights, expected)
    assert not routing.sums_to_one and (routing.weights.sum(1) < 1).all()


def test_several_shared_experts_are_experts_of_their_own_and_matched_widths_count_them():
    layer = layer_of(top_k=3, width='matched')
    assert isinstance(layer.expert_group.shared, SharedExperts) and len(layer.expert_group.every_expert) == EXPERTS + 2
    first, second = layer.expert_group.shared
    assert not torch.equal(first.layers[1].weight, second.layers[1].weight)
    # 5 experts run: 12 hidden channels / 5
    assert first.layers[1].weight.shape == (CHANNELS, 2)
    assert isinstance(layer.router.constraints['switch'], SwitchConstraint)


def test_a_head_with_shared_experts_starts_at_the_focal_prior_and_trains():
    moe = dict(num_experts=3, top_k=2, shared_expert=2, weighting='full_softmax', class_mixture='logits')
    model = detector(moe)
    for group in model.bbox_head.branch_experts.values():
        assert all((expert.predictor.weight == 0).all() for expert in group.shared)
        assert all((expert.predictor.weight != 0).any() for expert in group.experts)
    losses = losses_of(model, batch())
    sum(losses.values()).backward()
    for group in model.bbox_head.branch_experts.values():
        assert all(expert.predictor.weight.grad.abs().sum() > 0 for expert in group.shared)


def test_what_cannot_be_built_is_refused():
    for value in (-1, 1.5, None):
        with pytest.raises(MoEConfigError, match=f'shared_expert={value!r}: expected True, False or a number'):
            MoESettings.from_config({'shared_expert': value}, 'moe')
    with pytest.raises(MoEConfigError, match='moe.shared_expert=2: of the slices of the dense part one can be shared'):
        detector(dict(placement='shards', shards=1, shared_expert=2))
    with pytest.raises(MoEConfigError, match="weighting='full_softmax': mixed kernels need weights that sum to 1"):
        MoESettings.from_config({'weighting': 'full_softmax', 'mixes': 'kernels'}, 'moe')
