"""MoEFFN beside mmcv's FFN and a naive sum over tokens."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from mmcv.cnn.bricks.transformer import FFN
from torch import nn
from torch.autograd import gradcheck

from moe_det.errors import MoEConfigError, UncollectedConstraintError
from moe_det.layers import MoEFFN
from moe_det.layers import moe_ffn as module_under_test
from moe_det.routing import dispatch
from moe_det.routing.experts import fold_common
from moe_det.routing.intervention import Intervention, intervene
from moe_det.routing.records import RoutingRecorder
from moe_det.routing.router import find_routers

TOP2 = {'num_experts': 4, 'top_k': 2}
STRAIGHT = {'num_experts': 4, 'top_k': 1, 'weighting': 'straight_through'}
SHARDS = {'placement': 'shards', 'shards': 2, 'copies': 3}
KINDS = {
    'two of four': TOP2,
    'one of four': {'num_experts': 4, 'top_k': 1},
    'straight through': STRAIGHT,
    'shards': SHARDS,
    'shards and a shared one': {**SHARDS, 'shards': 3, 'shared_expert': True},
    'a shard and a shared one': {**SHARDS, 'shards': 1, 'shared_expert': True},
    'common part': {**TOP2, 'copies_share': True},
}


def ffn(**changes) -> FFN:
    """A small FFN."""
    return FFN(**{'embed_dims': 6, 'feedforward_channels': 12, 'ffn_drop': 0.0, **changes})


def layer(dense: FFN | None = None, **moe) -> MoEFFN:
    """Experts in double precision whose gate is far from ties."""
    built = MoEFFN(dense or ffn(), 'decoder.layers.0.ffn', **moe).double()
    with torch.no_grad():
        built.router.gate.fc.weight.normal_(std=3.0)
    return built


def naive(moe: MoEFFN, x: torch.Tensor) -> torch.Tensor:
    """Token by token (or image by image): the logits' largest, softmax, two linear layers each, and the identity."""
    group, router = moe.expert_group, moe.router
    output = torch.empty_like(x)
    for image in range(x.shape[0]):
        for token in range(x.shape[1]):
            seen = x[image, token] if router.unit == 'token' else x[image].mean(0)
            logits = router.gate.fc.weight @ seen + router.gate.fc.bias
            if router.slots > 1:
                by_slot = logits.reshape(router.slots, -1)
                chosen = [slot * by_slot.shape[1] + int(by_slot[slot].argmax()) for slot in range(router.slots)]
                weights = [logits.new_ones(())] * router.slots
            else:
                chosen = logits.sort(descending=True).indices[: router.top_k].tolist()
                weights = torch.softmax(logits[chosen], 0) if router.top_k > 1 else torch.softmax(logits, 0)[chosen]
                if router.weighting == 'straight_through':
                    weights = [logits.new_ones(())]
            total = x[image, token].clone()
            for weight, expert in zip(weights, chosen, strict=True):
                total = total + weight * two_layers(group.weights_of(expert), x[image, token])
            if group.shared is not None:
                total = total + two_layers(dict(group.shared.named_parameters()), x[image, token])
            output[image, token] = total
    return output


def two_layers(weights: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """W2 relu(W1 x + b1) + b2."""
    hidden = torch.relu(weights['layers.0.0.weight'] @ x + weights['layers.0.0.bias'])
    return weights['layers.1.weight'] @ hidden + weights['layers.1.bias']


@pytest.mark.parametrize('unit', ['token', 'image'])
@pytest.mark.parametrize('dispatch_mode', ['sorted', 'dense'])
@pytest.mark.parametrize('kind', KINDS)
def test_it_is_the_sum_over_each_tokens_experts(kind, dispatch_mode, unit):
    moe = layer(**KINDS[kind], dispatch=dispatch_mode, unit=unit).train()
    x = torch.randn(3, 7, 6, dtype=torch.float64, requires_grad=True)
    output, expected = moe(x), naive(moe, x)
    torch.testing.assert_close(output, expected, rtol=1e-12, atol=1e-12)
    experts = list(moe.expert_group.parameters())
    upstream = torch.randn_like(output)
    ours = torch.autograd.grad(output, [x, *experts], upstream, allow_unused=dispatch_mode == 'dense')
    theirs = torch.autograd.grad(expected, [x, *experts], upstream, allow_unused=True)
    if moe.router.weighting == 'softmax':  # whose gate has a gradient of its own
        torch.testing.assert_close(ours[0], theirs[0], rtol=1e-10, atol=1e-10)
    for our, their in zip(ours[1:], theirs[1:], strict=True):
        their = torch.zeros_like(our) if their is None else their
        torch.testing.assert_close(our, their, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize('unit', ['token', 'image'])
@pytest.mark.parametrize('kind', ['two of four', 'one of four'])
def test_gradcheck(kind, unit):
    moe = layer(ffn(embed_dims=3, feedforward_channels=4, act_cfg={'type': 'GELU'}), **KINDS[kind], unit=unit).train()
    x = torch.randn(2, 3, 3, dtype=torch.float64, requires_grad=True)
    assert gradcheck(lambda x, *_: moe(x), (x, *moe.parameters()))


EXACT_KINDS = [kind for kind in KINDS if kind != 'one of four']  # whose weight is a probability below 1
OF_TWO_LAYERS = [{}, {'add_identity': False}, {'layer_scale_init_value': 0.3}]


@pytest.mark.parametrize(
    ('kind', 'settings'),
    [(kind, settings) for kind in EXACT_KINDS for settings in OF_TWO_LAYERS]
    + [(kind, {'num_fcs': 3}) for kind in EXACT_KINDS if 'shard' not in kind],
)
def test_copies_of_a_dense_ffn_compute_what_it_does(kind, settings):
    dense = ffn(**settings, act_cfg={'type': 'GELU'}).double()
    with torch.no_grad():
        for parameter in dense.parameters():
            parameter.normal_()
    moe = layer(ffn(**settings, act_cfg={'type': 'GELU'}), **KINDS[kind], copy_noise=0.0)
    stored = {f'x.{key}': value for key, value in dense.state_dict().items()}
    missing, unexpected = nn.ModuleDict({'x': moe}).load_state_dict(stored, strict=False)
    assert not unexpected and all('.router.' in key for key in missing)
    x, identity = torch.randn(2, 5, 6, dtype=torch.float64), torch.randn(2, 5, 6, dtype=torch.float64)
    for given in ((x,), (x, identity)):
        torch.testing.assert_close(moe(*given), dense(*given), rtol=1e-11, atol=1e-11)
    fold_common(moe)
    torch.testing.assert_close(moe(x), dense(x), rtol=1e-11, atol=1e-11)


def test_dropout_and_stochastic_depth_act_as_in_the_dense_ffn():
    settings = {'dropout_layer': {'type': 'DropPath', 'drop_prob': 0.5}, 'feedforward_channels': 64}
    dense = ffn(**settings).double().train()
    moe = MoEFFN(dense, 'ffn', **STRAIGHT, copy_noise=0.0).double().train()
    nn.ModuleDict({'x': moe}).load_state_dict({f'x.{k}': v for k, v in dense.state_dict().items()}, strict=False)
    x = torch.randn(64, 3, 6, dtype=torch.float64)
    torch.manual_seed(5)
    expected = dense(x)
    torch.manual_seed(5)
    torch.testing.assert_close(moe(x), expected, rtol=1e-12, atol=1e-12)  # whole images are dropped, the same ones
    moe = MoEFFN(ffn(ffn_drop=0.5), 'ffn', **STRAIGHT).train()
    dropped = (moe(torch.zeros(40, 50, 6)) == 0).double().mean()  # the last dropout sees the mixture
    assert 0.45 < dropped < 0.55
    assert (moe.eval()(torch.zeros(40, 50, 6)) != 0).all()


def test_an_attentive_gate_sees_the_experts_of_every_token():
    settings = {**TOP2, 'gate': {'type': 'AttentiveGate', 'hidden_channels': 4}}
    for unit, shape in (('token', (6, 4, 6)), ('image', (2, 4, 6))):
        moe = MoEFFN(ffn(), 'ffn', **settings, unit=unit)
        seen = []
        moe.router.gate.register_forward_pre_hook(lambda _, given, seen=seen: seen.append(given[1].shape))
        assert moe(torch.randn(2, 3, 6)).shape == (2, 3, 6)
        assert seen == [torch.Size(shape)]


def test_rows_are_named_by_image_and_token():
    moe = nn.ModuleDict({'ffn': layer(**TOP2)}).eval()
    with RoutingRecorder(moe) as recorder:
        recorder.start_batch([7, 9])
        moe.ffn(torch.randn(2, 3, 6, dtype=torch.float64))
    (record,) = recorder.records
    assert record.image_ids.tolist() == [7, 7, 7, 9, 9, 9]
    assert record.patches.tolist() == [0, 1, 2, 0, 1, 2]
    assert record.unit == 'token' and record.weights.shape == (6, 4)


def test_a_forced_expert_serves_every_token_and_a_knocked_out_one_none():
    moe = nn.ModuleDict({'ffn': layer(**TOP2)}).eval()
    x = torch.randn(2, 5, 6, dtype=torch.float64)
    with intervene(moe, {'ffn': Intervention(forced=2)}):
        forced = moe.ffn(x)
    torch.testing.assert_close(forced, x + moe.ffn.expert_group.experts[2](x), rtol=1e-12, atol=1e-12)
    calls = []
    moe.ffn.expert_group.experts[1].register_forward_hook(lambda *_: calls.append(1))
    moe.ffn(x)
    assert calls
    calls.clear()
    with intervene(moe, {'ffn': Intervention(knocked_out=1)}):
        moe.ffn(x)
    assert not calls


def test_constraints_count_tokens_and_must_be_collected():
    moe = layer(**TOP2, constraint=[{'type': 'KLConstraint'}, {'type': 'MeanImportanceConstraint'}]).train()
    steps = []
    moe.router.collected.observe(steps.append)
    x = torch.randn(2, 5, 6, dtype=torch.float64)
    with pytest.raises(UncollectedConstraintError, match=r'decoder\.layers\.0\.ffn: KLConstraint'):
        moe(x).sum().backward()
    moe.router.start_step()
    output = moe(x)
    losses = moe.router.collect()
    assert set(losses) == {'kl'}
    (output.sum() + losses['kl']).backward()
    assert [usage.rows.tolist() for usage in steps] == [[10]]
    assert all(parameter.grad is not None for parameter in moe.parameters())


def test_few_tokens_and_none():
    moe = layer(num_experts=8, top_k=2, constraint={'type': 'KLConstraint'}, noise=False).train()
    for tokens in (0, 1, 3):  # fewer than experts
        moe.zero_grad()
        x = torch.randn(1, tokens, 6, dtype=torch.float64, requires_grad=True)
        output = moe(x)
        assert output.shape == x.shape
        (output.sum() + sum(moe.router.collect().values())).backward()
        grads = [parameter.grad for parameter in moe.parameters()]
        assert all(grad is not None and torch.isfinite(grad).all() for grad in grads)
        idle = [e for e in moe.expert_group.experts if (e.layers[1].weight.grad == 0).all()]
        assert len(idle) >= 8 - 2 * tokens


def test_without_images_every_unit_gives_an_empty_output():
    for unit in ('token', 'image'):
        assert layer(**TOP2, unit=unit).eval()(torch.zeros(0, 5, 6, dtype=torch.float64)).shape == (0, 5, 6)


def test_a_nan_stays_with_its_token():
    moe = layer(**TOP2).eval()
    x = torch.randn(2, 5, 6, dtype=torch.float64)
    clean = moe(x)
    x[1, 3, 0] = float('nan')
    spoilt = moe(x)
    assert spoilt[1, 3].isnan().all()
    spoilt[1, 3] = clean[1, 3]
    torch.testing.assert_close(spoilt, clean, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_autocast_leaves_the_decision_in_full_precision(dtype):
    moe = MoEFFN(ffn(), 'ffn', **TOP2, constraint={'type': 'KLConstraint'}).train()
    seen = []
    moe.router.decided.observe(lambda routing, layout: seen.append(routing))
    with torch.autocast('cpu', dtype=dtype):
        output = moe(torch.randn(2, 9, 6))
        losses = moe.router.collect()
    assert seen[0].logits.dtype == seen[0].log_weights.dtype == torch.float32
    (output.float().sum() + sum(losses.values())).backward()
    assert all(torch.isfinite(p.grad).all() for p in moe.parameters())


def test_one_copy_to_the_host_and_work_that_does_not_grow_with_the_experts(monkeypatch):
    copies, rows = [], []
    original = dispatch.copy_to_host
    monkeypatch.setattr('moe_det.routing.tokens.copy_to_host', lambda t: copies.append(t.numel()) or original(t))
    for num_experts in (2, 16):
        copies.clear()
        rows.clear()
        moe = layer(num_experts=num_experts, top_k=1).train()
        for expert in moe.expert_group.experts:
            expert.register_forward_pre_hook(lambda _, given: rows.append(given[0].shape[0]))
        moe(torch.randn(2, 500, 6, dtype=torch.float64)).sum().backward()
        assert copies == [num_experts + 1]  # how many rows each expert has
        assert sum(rows) == 1000


def test_what_is_kept_for_backward_does_not_grow_with_the_experts():
    kept = []
    for num_experts in (4, 16):
        moe = layer(num_experts=num_experts, top_k=2).train()
        weights = {parameter.untyped_storage().data_ptr() for parameter in moe.parameters()}
        seen: dict[int, int] = {}  # inputs and hidden values, of 6 and 12 channels

        def keep(tensor, weights=weights, seen=seen):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights and tensor.dim() > 1 and tensor.shape[-1] in (6, 12):
                seen[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            output = moe(torch.randn(2, 500, 6, dtype=torch.float64))
        kept.append(sum(seen.values()))
        del output
    assert kept[1] == kept[0]  # nothing is (rows, experts, channels)


def test_copies_compute_the_same():
    moe = layer(**TOP2).eval()
    x = torch.randn(2, 5, 6, dtype=torch.float64)
    assert torch.equal(copy.deepcopy(moe)(x), moe(x))
    assert list(find_routers(moe)) == ['router']


def test_swin_and_detr_give_other_shapes():
    moe = layer(**TOP2).eval()
    x = torch.randn(2, 3, 4, 6, dtype=torch.float64)
    torch.testing.assert_close(moe(x), moe(x.flatten(1, 2)).reshape(x.shape))
    torch.testing.assert_close(moe(x[:, 0, 0]), moe(x[:, :1, 0])[:, 0])


@pytest.mark.parametrize(
    ('moe', 'message'),
    [
        ({'unit': 'level'}, "unit: unknown value 'level'; the names that exist are: image, token"),
        ({'unit': 'patch', 'grid': 2}, "unknown value 'patch'"),
        ({'balance_over': 'level'}, 'tokens belong to no level'),
        ({'mixes': 'kernels'}, 'weights of its own for every token; take it out'),
        ({'copies': 3}, "copies=3: applies to placement='shards' alone"),
        ({'placement': 'shards', 'shards': 5}, 'shards=5: 5 slices do not divide 12 hidden channels'),
        ({'placement': 'shards', 'top_k': 3}, 'top_k=3: follows from shards=2'),
        ({'placement': 'tower'}, "placement: unknown value 'tower'"),
        ({'experts': 3}, "unknown key 'experts'"),
        ({'width': 9}, 'width=9: expected a factor'),
        ({'num_experts': 2, 'top_k': 3}, 'top_k=3: expected at most num_experts=2'),
    ],
    ids=str,
)
def test_settings_that_cannot_be_built_name_the_layer_and_the_key(moe, message):
    with pytest.raises(MoEConfigError, match=r'^decoder\.layers\.0\.ffn') as error:
        layer(**moe)
    assert message in str(error.value)


def test_matched_experts_cost_what_the_ffn_costs():
    moe = MoEFFN(ffn(feedforward_channels=64), 'ffn', num_experts=8, top_k=2, width='matched')
    assert moe.expert_group.experts[0].layers[0][0].out_features == 32


def test_activation_follows_the_dense_one():
    moe = MoEFFN(ffn(act_cfg={'type': 'GELU'}), 'ffn', **STRAIGHT)
    expert = moe.expert_group.experts[0]
    x = torch.randn(4, 6)
    hidden = F.gelu(F.linear(x, expert.layers[0][0].weight, expert.layers[0][0].bias))
    torch.testing.assert_close(expert(x), F.linear(hidden, expert.layers[1].weight, expert.layers[1].bias))
    assert module_under_test.ffn_shard_axis('layers.1.bias') == 'sum'
