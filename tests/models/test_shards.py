"""MoERetinaHead with placement='shards' against mmdet's RetinaHead and against a row-by-row reference."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from small_models import head, head_losses, head_outputs, initialise, multiply_adds, pyramid, spread_weights
from torch import Tensor

from moe_det.errors import CheckpointError
from moe_det.models.shards import by_combination
from moe_det.probing.kept_outputs import keep_outputs
from moe_det.routing.intervention import Intervention, intervene

GN, BN = dict(norm_cfg=dict(type='GN', num_groups=4)), dict(norm_cfg=dict(type='BN'))
PATCH = dict(unit='patch', grid=2)
KL = dict(type='KLConstraint', weight=0.25)


def shards(moe: dict | None = None, **changes) -> torch.nn.Module:
    """A head of shards whose gates tell images and levels clearly apart."""
    return spread_weights(head(dict(placement='shards', noise=False, **(moe or {})), **changes))


def plain(**changes) -> torch.nn.Module:
    """A plain head with clearly different outputs and, in batch norms, statistics of their own."""
    dense = spread_weights(head(**changes))
    generator = torch.Generator().manual_seed(1)
    for name, buffer in dense.named_buffers():
        if name.endswith(('running_mean', 'running_var')):
            buffer.copy_(0.5 + torch.rand(buffer.shape, generator=generator))
    return dense


def from_dense(dense: torch.nn.Module, moe: dict | None = None, **changes) -> torch.nn.Module:
    """A head of shards that has loaded a plain one as a checkpoint, without noise."""
    copies = shards(dict(copy_noise=0, **(moe or {})), **changes)
    missing, unexpected = copies.load_state_dict(dense.state_dict(), strict=False)
    assert not unexpected
    assert all(key.startswith('routers.') or '.common.' in key for key in missing), missing
    return copies


def assert_close(ours: list[Tensor], theirs: list[Tensor], tolerance: float) -> None:
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


SAME_AS_DENSE = [
    *[(moe, changes) for moe in ({}, dict(unit='image'), dict(shared_gate=True)) for changes in ({}, GN, BN)],
    *[(PATCH, changes) for changes in ({}, BN)],
    (dict(shards=4, copies=2), GN),
    (dict(shards=1, copies=3), GN),
    (dict(shards=2, copies=1), GN),
    (dict(shards=2, copies=1), BN),
    (dict(shards=1, copies=1), {}),
    (dict(dispatch='all'), GN),
    (dict(copies_share=True), GN),
    (dict(branches=('cls',)), GN),
    ({}, dict(stacked_convs=1, feat_channels=16)),
    ({}, dict(norm_cfg=dict(type='IN', affine=True))),
    (dict(constraint=KL), GN),
    *[(dict(shards=1, shared_expert=True, **moe), GN) for moe in ({}, dict(unit='image', dispatch='all'))],
    (dict(shards=3, shared_expert=True, copies_share=True), BN),
    (dict(shards=1, shared_expert=True, **PATCH), {}),
    (dict(shards=3, shared_expert=True, copies=1), GN),
]


@pytest.mark.parametrize('moe, changes', SAME_AS_DENSE, ids=str)
def test_a_loaded_plain_head_gives_its_outputs(moe, changes):
    dense = plain(**changes).eval()
    copies = from_dense(dense, moe, **changes).eval()
    maps = pyramid(images=3, size=256)
    with torch.no_grad():
        ours, theirs = head_outputs(copies, maps), head_outputs(dense, maps)
    assert all(y.std() > 0.01 for y in theirs)
    assert_close(ours, theirs, 1e-5)


def test_copies_share_the_gradients_of_the_plain_head_they_were_loaded_from():
    dense = plain(**GN).double()
    copies = from_dense(dense, **GN).double()
    maps = pyramid(images=3, dtype=torch.float64)
    losses = [head_losses(model, maps) for model in (copies, dense)]
    for key, value in losses[1].items():
        torch.testing.assert_close(losses[0][key], value, rtol=1e-9, atol=1e-9)
    for of_model in losses:
        sum(of_model.values()).backward()
    gradient = {name: parameter.grad for name, parameter in dense.named_parameters()}
    for branch, group in copies.branch_experts.items():
        for name, parameter in getattr(copies, f'{branch}_convs').named_parameters():
            torch.testing.assert_close(parameter.grad, gradient[f'{branch}_convs.{name}'], rtol=1e-9, atol=1e-12)
        for shard, half in ((0, slice(0, 4)), (1, slice(4, 8))):
            own = [dict(group.experts[shard * 4 + copy].named_parameters()) for copy in range(4)]
            for name in own[0]:
                total = sum(of_copy[name].grad for of_copy in own)
                expected = gradient[
                    name.replace('conv.', f'{branch}_convs.1.', 1).replace('predictor', f'retina_{branch}')
                ]
                if name != 'predictor.bias':
                    expected = expected[:, half] if name == 'predictor.weight' else expected[half]
                torch.testing.assert_close(total, expected, rtol=1e-9, atol=1e-12)


def naive_branch(model, branch: str, maps: list[Tensor], per_image: bool) -> list[Tensor]:
    """One branch row by row: of every shard the likeliest copy, with the weight 1 + p - p without gradient."""
    router = model.routers['both' if 'both' in model.routers else branch]
    group, gate = model.branch_experts[branch], router.gate.fc
    count = len(group.experts) // model.moe.shards
    outputs = []
    for x in maps:
        tower = x
        for conv in getattr(model, f'{branch}_convs'):
            tower = conv(tower)
        lines = []
        for n in range(len(x)):
            seen = [y[n].mean((1, 2)) for y in maps] if per_image else [x[n].mean((1, 2))]
            logits = torch.stack([gate.weight @ pooled + gate.bias for pooled in seen]).mean(0)
            total = 0
            for first in range(0, len(group.experts), count):
                p = logits[first : first + count].softmax(0).max()
                expert = group.experts[first + int(logits[first : first + count].argmax())]
                total = total + (1 + p - p.detach()) * expert(tower[n : n + 1])
            lines.append(total if group.shared is None else total + group.shared(tower[n : n + 1]))
        outputs.append(torch.cat(lines))
    return outputs


@pytest.mark.parametrize('dispatch', ['sorted', 'all'])
@pytest.mark.parametrize(
    'moe, changes',
    [
        ({}, GN),
        (dict(shards=4, copies=2), GN),
        (dict(shards=1, copies=4), {}),
        (dict(unit='image', shared_gate=True), {}),
        (dict(copies=3), dict(stacked_convs=1)),
        (dict(shards=3, shared_expert=True), GN),
    ],
    ids=str,
)
def test_outputs_and_gradients_match_the_row_by_row_reference(moe, changes, dispatch):
    model = shards(dict(dispatch=dispatch, **moe), **changes).double()
    maps = [x.requires_grad_() for x in pyramid(images=5, dtype=torch.float64)]
    chosen = []
    for router in model.routers.values():
        router.decided.observe(lambda routing, layout: chosen.append(routing.indices))
    ours = head_outputs(model, maps)
    assert len(torch.cat(chosen).unique(dim=0)) > 2, 'all rows run the same copies'
    per_image = moe.get('unit') == 'image'
    theirs = [y for branch in ('cls', 'reg') for y in naive_branch(model, branch, maps, per_image)]
    assert_close(ours, theirs, 1e-10)
    directions = [torch.sin(torch.arange(y.numel(), dtype=y.dtype)).reshape(y.shape) for y in theirs]
    named = dict(model.named_parameters())
    gradients = [
        torch.autograd.grad(ys, [*maps, *named.values()], directions, materialize_grads=True) for ys in (ours, theirs)
    ]
    for name, a, b in zip([*range(5), *named], *gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-9, msg=lambda text, name=name: f'{name}: {text}')
    gates = [b for name, b in zip([*range(5), *named], gradients[1], strict=True) if 'gate.fc.weight' in str(name)]
    assert all(gradient.abs().max() > 1e-3 for gradient in gates)


def dense_outputs(model, maps: list[Tensor]) -> list[Tensor]:
    """What the same head computes when it runs every expert."""
    for group in model.branch_experts.values():
        group.dispatch = 'all'
    try:
        return head_outputs(model, maps)
    finally:
        for group in model.branch_experts.values():
            group.dispatch = 'sorted'


@pytest.mark.parametrize('changes', [{}, GN, BN], ids=str)
def test_patches_match_running_all(changes):
    model = shards(dict(unit='patch', grid=3), **changes).eval()
    maps = pyramid(images=2, size=128)
    with torch.no_grad():
        assert_close(head_outputs(model, maps), dense_outputs(model, maps), 1e-5)


def test_copies_that_share_match_their_sums():
    model = shards(dict(copies_share=True), **GN).double()
    maps = pyramid(images=3, dtype=torch.float64)
    ours = head_outputs(model, maps)
    sums = dense_outputs(model, maps)
    assert_close(ours, sums, 1e-10)
    gradient = torch.autograd.grad(sum(y.sin().sum() for y in ours), list(model.parameters()), materialize_grads=True)
    expected = torch.autograd.grad(sum(y.sin().sum() for y in sums), list(model.parameters()), materialize_grads=True)
    assert_close(list(gradient), list(expected), 1e-9)


# -- rows of one combination -------------------------------------------------------------------------------------


def level(*choices: tuple[int, ...]) -> SimpleNamespace:
    return SimpleNamespace(choices=np.array(choices, dtype=np.int64).reshape(len(choices), 2))


def test_rows_are_sorted_by_combination():
    plan = [level((1, 2), (1, 2)), level((1, 3), (0, 2)), level((1, 2), (0, 3), (1, 2), (0, 2)), level()]
    same, apart, mixed, empty = by_combination(plan, (0, 2))
    assert same.counts == {(1, 2): 2} and same.order is None
    assert list(apart.counts.items()) == [((1, 3), 1), ((0, 2), 1)] and apart.order is None
    assert list(mixed.counts.items()) == [((0, 2), 1), ((0, 3), 1), ((1, 2), 2)]
    assert mixed.order.tolist() == [3, 1, 0, 2]
    assert mixed.places.tolist() == [2, 1, 3, 0]
    assert empty.counts == {(0, 2): 0}


@pytest.mark.parametrize('images', [1, 4])
@pytest.mark.parametrize(
    'moe',
    [
        dict(shards=2, copies=4),
        dict(shards=4, copies=8),
        dict(shards=1, copies=2),
        dict(shards=1, copies=4, shared_expert=True),
    ],
    ids=str,
)
def test_cost_is_that_of_the_plain_head_whatever_the_number_of_copies(moe, images):
    maps = tuple(pyramid(images=images))
    model = shards(moe, **GN).eval()
    gates = 2 * 5 * images * 8 * moe['shards'] * moe['copies']  # two gates, five levels, 8 channels, E logits
    assert multiply_adds(model, maps) == multiply_adds(plain(**GN).eval(), maps) + gates


def test_one_convolution_per_level_where_rows_agree(monkeypatch):
    calls = []
    real = torch.nn.functional.conv2d
    counted = lambda *args, **kwargs: calls.append(args[1].shape) or real(*args, **kwargs)  # noqa: E731
    monkeypatch.setattr(torch.nn.functional, 'conv2d', counted)
    shards(dict(copies=8), **GN).eval()(tuple(pyramid(images=1)))
    # per branch and level the tower's convolution, the merged one and the merged predictor
    assert len(calls) == 2 * 5 * 3
    assert {tuple(shape) for shape in calls} == {(8, 8, 3, 3), (27, 8, 3, 3), (36, 8, 3, 3)}


def test_batch_statistics_are_those_of_a_copys_own_rows():
    """Rows that run the same copy of one shard may run different copies of another."""
    model = shards(**BN).double().train()
    (level, *_) = pyramid(images=6, dtype=torch.float64)
    decisions = []
    model.routers['cls'].decided.observe(lambda routing, layout: decisions.append(routing.indices))
    model((level,))
    (chosen,) = decisions
    assert len(chosen.unique(dim=0)) > max(len(column.unique()) for column in chosen.t())
    tower = model.cls_convs[0](level)
    for number, expert in enumerate(model.branch_experts['cls'].experts):
        mine = (chosen == number).any(1)
        mean = expert.conv.conv(tower[mine]).mean((0, 2, 3)) if mine.any() else torch.zeros(4, dtype=torch.float64)
        norm = expert.conv.bn
        torch.testing.assert_close(norm.running_mean, norm.momentum * mean, rtol=1e-9, atol=1e-12)


def test_idle_copies_get_zero_gradients_and_used_ones_others():
    model = shards(dict(copies=8), **GN).train()
    used = set()
    model.routers['cls'].decided.observe(lambda routing, layout: used.update(routing.indices.unique().tolist()))
    sum(y.sum() for y in head_outputs(model, pyramid(images=1))).backward()
    assert 2 <= len(used) < 16
    for number, expert in enumerate(model.branch_experts['cls'].experts):
        largest = max(p.grad.abs().max() for p in expert.parameters())
        assert (largest > 0) == (number in used), number


@pytest.mark.parametrize('training', [False, True])
@pytest.mark.parametrize('moe', [{}, dict(dispatch='all'), dict(copies=1)], ids=str)
def test_no_images(moe, training):
    model = shards(moe, **GN).train(training)
    outputs = head_outputs(model, [x[:0] for x in pyramid()])
    assert [tuple(y.shape) for y in outputs] == [
        (0, channels, side, side) for channels in (27, 36) for side in (8, 4, 2, 1, 1)
    ]


# -- interventions -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    'intervention',
    [dict(forced=1), dict(forced=(1, 6)), dict(forced=(0, 1)), dict(forced=(0, 1, 2, 3, 5)), dict(knocked_out=6)],
    ids=str,
)
def test_interventions_match_running_all(intervention):
    model = shards(**GN).eval()
    maps = pyramid(images=3)
    with torch.no_grad(), intervene(model, {'routers.cls': Intervention(**intervention)}):
        ours, theirs = head_outputs(model, maps), dense_outputs(model, maps)
    assert_close(ours, theirs, 1e-5)


def test_forcing_a_copy_of_every_shard_is_the_network_put_together_from_them():
    model = shards(**GN).eval()
    dense = plain(**GN).eval()
    first, second = (model.branch_experts['cls'].experts[e] for e in (1, 6))
    with torch.no_grad():
        dense.cls_convs[0].load_state_dict(model.cls_convs[0].state_dict())
        for name in ('conv.weight', 'gn.weight', 'gn.bias'):
            halves = [expert.conv.state_dict()[name] for expert in (first, second)]
            dense.cls_convs[1].get_parameter(name).copy_(torch.cat(halves))
        dense.retina_cls.weight.copy_(torch.cat([first.predictor.weight, second.predictor.weight], dim=1))
        dense.retina_cls.bias.copy_(first.predictor.bias + second.predictor.bias)
        maps = pyramid(images=3)
        with intervene(model, {'routers.cls': Intervention(forced=(1, 6))}):
            ours = model(tuple(maps))[0]
        assert_close(ours, dense(tuple(maps))[0], 1e-5)


def test_kept_outputs_give_the_same():
    model = shards(**GN).eval()
    maps = pyramid(images=3)
    with torch.no_grad(), keep_outputs(model.experts_on_features):
        kept = head_outputs(model, maps)
        with intervene(model, {'routers.reg': Intervention(forced=(0, 1, 4))}):
            kept_forced = head_outputs(model, maps)
    with torch.no_grad():
        assert_close(kept, head_outputs(model, maps), 1e-5)
        with intervene(model, {'routers.reg': Intervention(forced=(0, 1, 4))}):
            assert_close(kept_forced, head_outputs(model, maps), 1e-5)


# -- start and checkpoints ---------------------------------------------------------------------------------------


@pytest.mark.parametrize('moe', [{}, dict(copies_share=True), dict(shards=3, shared_expert=True)], ids=str)
def test_from_scratch_a_rows_scores_have_the_focal_prior(moe):
    model = initialise(head(dict(dict(placement='shards', shards=4), **moe), **GN)).eval()
    with torch.no_grad():
        scores, deltas = model(tuple(pyramid(images=3)))
    assert scores[0].sigmoid().mean().item() == pytest.approx(0.01, rel=0.1)
    assert deltas[0].abs().mean() < 0.1
    group = model.branch_experts['cls']
    copies = [group.weights_of(expert)['predictor.weight'] for expert in range(len(group))]
    assert all(copy.std().item() == pytest.approx(0.01, rel=0.2) for copy in copies)
    assert not any(torch.equal(a, b) for a, b in itertools.combinations(copies, 2))


def test_own_checkpoint_is_loaded_as_it_is():
    saved = shards(dict(constraint=KL), **GN).state_dict()
    names = ('conv.conv.weight', 'conv.gn.weight', 'conv.gn.bias', 'predictor.weight', 'predictor.bias')
    prefix = 'branch_experts.cls.experts.7.'
    assert {key for key in saved if key.startswith(prefix)} == {prefix + name for name in names}
    other = spread_weights(shards(dict(constraint=KL), **GN), seed=1)
    other.load_state_dict(saved, strict=True)
    assert all(torch.equal(value, saved[key]) for key, value in other.state_dict().items())


@pytest.mark.parametrize(
    'moe', [dict(shards=4, copies=2), dict(shards=2, copies=3), dict(shards=1, copies=8), dict(copies=1)], ids=str
)
def test_a_checkpoint_of_other_shards_is_refused(moe):
    saved = shards(**GN).state_dict()
    with pytest.raises(CheckpointError, match=r'shards=\d.*copies=\d.*change the config to match'):
        shards(moe, **GN).load_state_dict(saved)


def test_noise_tells_copies_apart_and_nothing_else():
    dense = plain(**GN)
    model = shards(dict(copy_noise=0.1), **GN)
    model.load_state_dict(dense.state_dict(), strict=False)
    experts = model.branch_experts['cls'].experts
    for shard, half in enumerate(dense.cls_convs[1].conv.weight.chunk(2)):
        for copy in range(4):
            difference = experts[shard * 4 + copy].conv.conv.weight - half
            assert (difference.std() / half.std()).item() == pytest.approx(0.1, rel=0.2)
    assert torch.equal(model.cls_convs[0].conv.weight, dense.cls_convs[0].conv.weight)
