"""MoERetinaHead against mmdet's RetinaHead and against a row-by-row reference."""

from __future__ import annotations

import itertools

import pytest
import torch
from small_models import head, head_detections, head_losses, head_outputs, initialise, pyramid, spread_weights
from torch import Tensor

from moe_det.routing import dispatch

KL = dict(type='KLConstraint', weight=0.25)
WHOLE = [(slice(None), slice(None))]
# a 2x2 grid of cells with one pixel of halo, by hand: (pixels that a window reads, part of its output that is kept)
HALVES = {
    8: [(slice(0, 5), slice(0, 4)), (slice(3, 8), slice(1, 5))],
    4: [(slice(0, 3), slice(0, 2)), (slice(1, 4), slice(1, 3))],
    2: [(slice(0, 2), slice(0, 1)), (slice(0, 2), slice(1, 2))],
    1: WHOLE,
}


def copies_of(dense: torch.nn.Module, **moe) -> torch.nn.Module:
    """A head whose experts are exact copies of a dense head, loaded as a checkpoint is."""
    copies = spread_weights(head(dict(copy_noise=0, **moe)), seed=9).double()
    missing, unexpected = copies.load_state_dict(dense.state_dict(), strict=False)
    assert not unexpected
    assert all(key.startswith('routers.') for key in missing), missing
    return copies


@pytest.fixture(scope='module')
def dense():
    """A plain head with clearly different outputs at every anchor, its losses, input gradients and detections."""
    plain = spread_weights(head()).double()
    maps = [x.requires_grad_() for x in pyramid(dtype=torch.float64)]
    losses = head_losses(plain, maps)
    gradients = torch.autograd.grad(sum(losses.values()), maps)
    detections = head_detections(plain, maps)
    assert losses['loss_bbox'] > 0.1 and all(g.abs().max() > 1e-4 for g in gradients)
    assert detections[0].scores.std() > 0.01
    return plain, losses, gradients, detections


FOUR = dict(num_experts=4, top_k=2)
PATCH = dict(unit='patch', grid=2)
SAME_AS_DENSE = [
    *[dict(num_experts=1, top_k=1, placement=p) for p in ('branch', 'tower', 'first', 'last')],
    *[
        dict(**FOUR, placement=p, shared_gate=s, **unit)
        for p, s, unit in itertools.product(
            ('branch', 'tower', 'first', 'last'), (False, True), (dict(unit='level'), dict(unit='image'))
        )
    ],
    # experts of one convolution see all they need through the halo of one pixel; deeper ones do not
    *[dict(**FOUR, placement=p, shared_gate=s, **PATCH) for p in ('first', 'last') for s in (False, True)],
    dict(**FOUR, branches=('cls',)),
    dict(**FOUR, branches='reg', placement='last'),
    dict(**FOUR, dispatch='all'),
    dict(num_experts=2, top_k=2, soft_mixture=True),
]


@pytest.mark.parametrize('moe', SAME_AS_DENSE, ids=lambda moe: '-'.join(map(str, moe.values())))
def test_identical_experts_are_the_dense_head(dense, moe):
    plain, losses, gradients, detections = dense
    copies = copies_of(plain, **moe)
    maps = [x.requires_grad_() for x in pyramid(dtype=torch.float64)]
    found = head_losses(copies, maps)
    assert found.keys() == losses.keys()
    for key, value in losses.items():
        torch.testing.assert_close(found[key], value, rtol=1e-9, atol=1e-9)
    for ours, theirs in zip(torch.autograd.grad(sum(found.values()), maps), gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=1e-9)
    for ours, theirs in zip(head_detections(copies.eval(), maps), detections, strict=True):
        torch.testing.assert_close(ours.scores, theirs.scores, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(ours.bboxes, theirs.bboxes, rtol=1e-9, atol=1e-7)
        assert torch.equal(ours.labels, theirs.labels)


def naive_branch(head, branch: str, maps: list[Tensor], moe: dict) -> list[Tensor]:
    """One branch, row by row and expert by expert, as paper A's section A.2 writes it."""
    unit = moe.get('unit', 'level')
    cut = HALVES.__getitem__ if unit == 'patch' else lambda length: WHOLE
    router = head.routers['both' if 'both' in head.routers else branch]
    experts, top_k = head.branch_experts[branch].experts, router.top_k
    gate = router.gate.fc
    outputs = []
    for x in maps:
        lines = []
        for n in range(len(x)):
            columns = []
            for rows, kept_rows in cut(x.shape[2]):
                cells = []
                for cols, kept_cols in cut(x.shape[3]):
                    window = x[n : n + 1, :, rows, cols]
                    seen = [y[n].mean((1, 2)) for y in maps] if unit == 'image' else [window[0].mean((1, 2))]
                    logits = torch.stack([gate.weight @ pooled + gate.bias for pooled in seen]).mean(0)
                    chosen = sorted(range(len(logits)), key=lambda e: -logits[e])[:top_k]
                    weights = logits[chosen].softmax(0) if top_k > 1 else logits.softmax(0)[chosen]
                    values = [experts[e](window) for e in chosen]
                    if branch == 'cls' and moe.get('class_mixture') != 'logits':
                        p = sum(w * y.sigmoid() for w, y in zip(weights, values, strict=True))
                        value = torch.log(p / (1 - p))
                    else:
                        value = sum(w * y for w, y in zip(weights, values, strict=True))
                    cells.append(value[:, :, kept_rows, kept_cols])
                columns.append(torch.cat(cells, 3))
            lines.append(torch.cat(columns, 2))
        outputs.append(torch.cat(lines))
    return outputs


@pytest.mark.parametrize('shared_gate', [False, True])
@pytest.mark.parametrize('top_k', [1, 2, 3])
@pytest.mark.parametrize(
    'keys', [{}, PATCH, dict(unit='image', class_mixture='probabilities'), dict(class_mixture='logits')], ids=str
)
def test_outputs_and_gradients_match_the_row_by_row_reference(keys, top_k, shared_gate):
    moe = spread_weights(head(dict(num_experts=4, top_k=top_k, shared_gate=shared_gate, **keys))).double()
    maps = [x.requires_grad_() for x in pyramid(dtype=torch.float64)]
    named = dict(moe.named_parameters())
    ours = head_outputs(moe, maps)
    theirs = [y for branch in ('cls', 'reg') for y in naive_branch(moe, branch, maps, keys)]
    directions = [torch.sin(torch.arange(y.numel(), dtype=y.dtype)).reshape(y.shape) for y in theirs]
    for group in moe.branch_experts.values():
        group.dispatch = 'all'  # every expert runs, for export
    for a, b, c in zip(ours, theirs, head_outputs(moe, maps), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(c, b, rtol=1e-10, atol=1e-10)
    gradients = [
        torch.autograd.grad(ys, [*maps, *named.values()], directions, materialize_grads=True) for ys in (ours, theirs)
    ]
    for name, a, b in zip([*range(5), *named], *gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-9, msg=lambda text, name=name: f'{name}: {text}')


@pytest.mark.parametrize('placement', ['branch', 'tower', 'first', 'last'])
def test_every_class_expert_starts_at_the_focal_prior(placement):
    torch.manual_seed(0)
    moe = initialise(head(dict(num_experts=4, top_k=2, placement=placement)))
    maps = pyramid()
    if placement == 'branch':
        for expert in moe.branch_experts['cls'].experts:
            assert expert(maps[0]).sigmoid().mean().item() == pytest.approx(0.01, rel=0.1)
    scores, deltas = moe(tuple(maps))
    for level in scores:
        assert level.sigmoid().mean().item() == pytest.approx(0.01, rel=0.1)
    assert all(level.abs().max() < 0.5 for level in deltas)
    sums = {next(expert.parameters()).sum().item() for expert in moe.branch_experts['cls'].experts}
    assert len(sums) == 4  # independent initialisation


@pytest.mark.parametrize('branches', [('cls', 'reg'), ('reg',)])
def test_the_prior_survives_an_init_cfg_that_names_the_dense_predictor(branches):
    override = dict(type='Normal', name='retina_cls', std=0.01, bias_prob=0.01)
    init_cfg = dict(type='Normal', layer='Conv2d', std=0.01, override=override)
    moe = initialise(head(dict(num_experts=2, top_k=1, branches=branches), init_cfg=init_cfg))
    predictors = [e.predictor for e in moe.branch_experts['cls'].experts] if 'cls' in branches else [moe.retina_cls]
    for predictor in predictors:
        assert predictor.bias.sigmoid().tolist() == pytest.approx([0.01] * 27)
        assert predictor.weight.std().item() == pytest.approx(0.01, rel=0.1)


def test_shared_expert_adds_nothing_at_first_and_learns():
    moe = initialise(head(dict(num_experts=4, top_k=2, shared_expert=True)))
    maps = pyramid()
    with_shared = head_outputs(moe, maps)
    sum(head_losses(moe, maps).values()).backward()
    for group in moe.branch_experts.values():
        assert group.shared.predictor.weight.grad.abs().max() > 0
        group.shared = None
    assert all(torch.equal(a, b) for a, b in zip(with_shared, head_outputs(moe, maps), strict=True))


@pytest.mark.parametrize('shared_gate', [False, True])
def test_shared_gate_gives_both_branches_one_decision(shared_gate):
    moe = spread_weights(head(dict(num_experts=4, top_k=2, shared_gate=shared_gate, constraint=KL)))
    decisions = {}
    for branch, group in moe.branch_experts.items():
        group.register_forward_pre_hook(lambda _, args, branch=branch: decisions.update({branch: args[1]}))
    moe.train()(tuple(pyramid(images=8)))
    assert torch.equal(decisions['cls'].indices, decisions['reg'].indices) == shared_gate
    assert torch.equal(decisions['cls'].weights, decisions['reg'].weights) == shared_gate
    assert list(moe.routers) == (['both'] if shared_gate else ['cls', 'reg'])


@pytest.mark.parametrize(('shared_gate', 'gates'), [(False, ('cls', 'reg')), (True, ('both',))])
def test_several_constraints_report_one_loss_each(shared_gate, gates):
    constraints = [KL, dict(type='ZLossConstraint')]
    moe = spread_weights(head(dict(num_experts=4, top_k=2, shared_gate=shared_gate, constraint=constraints)))
    names = {key for key in head_losses(moe, pyramid()) if 'moe' in key}
    assert names == {f'loss_moe_{key}_{gate}' for key in ('kl', 'z') for gate in gates}


@pytest.mark.parametrize('training', [False, True])
@pytest.mark.parametrize(
    'moe',
    [{}, dict(shared_gate=True), dict(unit='image'), dict(unit='patch', grid=2), dict(top_k=1), dict(constraint=KL)],
    ids=str,
)
def test_one_copy_to_the_host_per_call(monkeypatch, moe, training):
    calls = []
    real = dispatch.copy_to_host
    monkeypatch.setattr(dispatch, 'copy_to_host', lambda counts: calls.append(counts) or real(counts))
    head({'num_experts': 4, 'top_k': 2, **moe}).train(training)(tuple(pyramid()))
    assert len(calls) == 1


@pytest.mark.parametrize('moe', [dict(num_experts=4, dispatch='all'), dict(num_experts=1, top_k=1)], ids=str)
def test_no_copy_to_the_host_where_nothing_depends_on_the_decision(monkeypatch, moe):
    monkeypatch.setattr(dispatch, 'copy_to_host', lambda counts: pytest.fail('copied'))
    head(moe)(tuple(pyramid()))


@pytest.mark.parametrize(
    'moe',
    [
        dict(noise=False, constraint=KL),
        dict(noise=False, constraint=KL, unit='patch', grid=2, top_k=1),
        dict(constraint=dict(type='SelectionBiasConstraint', rate=0.5), unit='image'),
        dict(constraint=dict(type='RelativeImportanceConstraint')),
        dict(shared_expert=True, placement='last'),
    ],
    ids=str,
)
def test_training_without_noise_equals_evaluation(moe):
    moe_head = spread_weights(head({'num_experts': 4, 'top_k': 2, **moe}))
    with torch.no_grad():
        trained, evaluated = (head_outputs(moe_head.train(mode), pyramid()) for mode in (True, False))
    assert all(torch.equal(a, b) for a, b in zip(trained, evaluated, strict=True))
