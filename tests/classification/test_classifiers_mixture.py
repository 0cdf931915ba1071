"""Mixtures of small classifiers against values by hand and a plain loop over experts."""

from __future__ import annotations

import math
from copy import deepcopy

import pytest
import torch
from mmengine.logging import MessageHub
from torch import nn

from moe_det.classification.mixture import MixtureClassifier
from moe_det.classification.networks import SmallConvNet, run_side_by_side
from moe_det.errors import CheckpointError, MoEConfigError
from moe_det.routing.distillation import finish_distillation

SMALL = dict(in_channels=1, image_size=10, channels=(2,), hidden=(6, 4))
DEEP = dict(in_channels=1, image_size=10, channels=(2, 3), norm=(1,), padding=1, hidden=(6, 4))
PLAIN = dict(type='ConvNetGate', image_size=10, channels=(2,), norm=(0,), hidden=(8, 4))
ATTENTIVE = dict(type='AttentiveGate', hidden_channels=4, query=dict(PLAIN, hidden=(8,)))


def model_of(gate=PLAIN, expert=SMALL, experts=3, top_k=None, seed=0, mixture='output', **kwargs) -> MixtureClassifier:
    """Three experts, five classes; ``kwargs`` of the model or, where it knows them, of ``moe``."""
    torch.manual_seed(seed)
    own = ('temperature', 'temperature_decay', 'test_top_k')
    moe = dict(num_experts=experts, top_k=top_k or experts, soft_mixture=not top_k, noise=False, gate=gate)
    moe |= {key: value for key, value in kwargs.items() if key not in own}
    model = MixtureClassifier(
        5, expert, moe, mixture, **{key: value for key, value in kwargs.items() if key in own}
    ).train()
    if model.router is not None:  # at first all experts are nearly equally probable
        with torch.no_grad():
            for weight in model.router.gate.parameters():
                weight.mul_(4 if weight.dim() > 1 else 1)
    return model


def batch(number: int = 12, seed: int = 1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(number, 1, 10, 10, generator=generator), torch.arange(number) % 5


INPUTS, LABELS = batch()


def by_hand(model: MixtureClassifier, inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Gate probabilities (N, E) and class probabilities of the experts (N, E, K), expert by expert."""
    found = [expert(inputs, with_features=True) for expert in model.expert_group.experts]
    o = torch.stack([output.softmax(1) for output, _ in found], 1)
    gate = model.router.gate
    if hasattr(gate, 'query'):
        q = gate.query.net(inputs) @ gate.to_query.weight.t()
        scores = [(q * (h @ gate.to_key.weight.t())).sum(1) / math.sqrt(4) for _, h in found]
        return torch.stack(scores, 1).softmax(1), o
    return gate.net(inputs).softmax(1), o


def cross_entropy(y: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Mean over the images of class probabilities y (N, K)."""
    return -(y[torch.arange(len(y)), labels] + 1e-7).log().mean()


@pytest.mark.parametrize('expert', [SMALL, DEEP])
@pytest.mark.parametrize('training', [True, False])
def test_side_by_side_equals_one_by_one(expert, training):
    nets = [SmallConvNet(num_outputs=5, **expert).double().train(training) for _ in range(3)]
    inputs = batch()[0].double()
    copies = deepcopy(nets)
    outputs, features = run_side_by_side(nets, inputs)
    loss = (outputs.sin() * torch.arange(1.0, 4.0).view(1, 3, 1)).sum() + features.square().sum()
    expected = [copy(inputs, with_features=True) for copy in copies]
    loss_by_one = sum((i + 1) * o.sin().sum() + f.square().sum() for i, (o, f) in enumerate(expected))
    assert torch.allclose(outputs, torch.stack([o for o, _ in expected], 1), atol=1e-12)
    assert torch.allclose(features, torch.stack([f for _, f in expected], 1), atol=1e-12)
    loss.backward(), loss_by_one.backward()
    for net, copy in zip(nets, copies, strict=True):
        for (name, mine), other in zip(net.named_parameters(), copy.parameters(), strict=True):
            assert torch.allclose(mine.grad, other.grad, atol=1e-10), name
        for name, value in net.state_dict().items():
            assert torch.allclose(value, copy.state_dict()[name]), name


def test_a_network_layer_by_layer():
    net = SmallConvNet(num_outputs=5, **DEEP).eval()
    plain = nn.Sequential(
        net.convs[0], nn.ReLU(), nn.MaxPool2d(2), net.convs[1], net.norms['1'], nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()
    )
    inputs = batch()[0]
    hidden = net.fcs[1](net.fcs[0](plain(inputs)).relu())
    output, features = net(inputs, with_features=True)
    assert torch.allclose(features, hidden, atol=1e-6)
    assert torch.allclose(output, net.fcs[2](hidden.relu()), atol=1e-6)


@pytest.mark.parametrize(
    ('network', 'sizes'),
    [
        # arXiv 2302.14703: expert and gate of each data set, as (first linear layer, parameters)
        (dict(in_channels=1, image_size=28, channels=(1,), hidden=(5, 32)), (169, 10 + 850 + 192 + 330)),
        (dict(in_channels=1, image_size=28, channels=(8,), norm=(0,), hidden=(512,)), (1352, None)),
        (
            dict(in_channels=3, image_size=32, channels=(3, 6, 12, 12), norm=(1, 3), padding=1, hidden=(64, 32)),
            (48, None),
        ),
        (dict(in_channels=3, image_size=32, channels=(16, 32, 64, 128), padding=1, hidden=(1024, 256)), (512, None)),
        (dict(in_channels=3, image_size=32, channels=(64, 128, 256, 512), padding=1, hidden=(1024,)), (2048, None)),
    ],
)
def test_published_sizes(network, sizes):
    net = SmallConvNet(num_outputs=10, **network)
    assert net.fcs[0].in_features == sizes[0]
    if sizes[1]:
        assert sum(p.numel() for p in net.parameters()) == sizes[1]


@pytest.mark.parametrize(
    ('gate', 'top_k', 'dense'), [(PLAIN, None, True), (ATTENTIVE, None, True), (PLAIN, 2, True), (PLAIN, 2, False)]
)
def test_loss_of_the_output_mixture(gate, top_k, dense):
    """The importance is that of all experts or, with ``dense=False``, of those that are mixed."""
    constraint = dict(type='ImportanceConstraint', weight=0.4, dense=dense)
    model = model_of(gate, top_k=top_k, constraint=constraint)
    losses = model(INPUTS, LABELS, mode='loss')
    p, o = by_hand(model, INPUTS)
    kept, chosen = p.topk(top_k or 3)
    mixed = torch.zeros_like(p).scatter(1, chosen, kept / kept.sum(1, keepdim=True))
    assert torch.allclose(losses['loss_cls'], cross_entropy((mixed[:, :, None] * o).sum(1), LABELS), atol=1e-6)
    importance = (p if dense else mixed).sum(0)
    assert torch.allclose(losses['loss_moe_importance'], 0.4 * (importance.std() / importance.mean()) ** 2, atol=1e-6)


@pytest.mark.parametrize('gate', [PLAIN, ATTENTIVE])
def test_stochastic_mixture(gate):
    model = model_of(gate, mixture='stochastic')
    p, o = by_hand(model, INPUTS)
    # Jacobs: -mean log sum_e p(e|x) exp(-CE_e / 2), exp(-CE / 2) is the root of the label's probability
    expected = -(p * o[torch.arange(12), :, LABELS].sqrt()).sum(1).log().mean()
    assert torch.allclose(model(INPUTS, LABELS, mode='loss')['loss_cls'], expected, atol=1e-6)
    model.eval()
    with torch.no_grad():
        p, o = by_hand(model, INPUTS)
        (found,) = model(INPUTS.repeat(500, 1, 1, 1), LABELS.repeat(500), mode='predict')
    distance = (found['probs'].view(500, 12, 1, 5) - o).abs().amax(3)
    assert (distance.amin(2) < 1e-5).all()  # one expert's answer as it is
    counts = nn.functional.one_hot(distance.argmin(2), 3).float().mean(0)
    assert torch.allclose(counts, p, atol=0.1) and p.std(0).max() > 0.05
    # the decomposition is that of the most probable expert, whichever was drawn
    assert torch.equal(found['expert_classes']['router'][:12], o[torch.arange(12), p.argmax(1)].argmax(1))


def test_similarity_of_pixels():
    betas = dict(beta_s=0.3, beta_d=0.7)
    for normalisation in ('pairs', 'published'):
        constraint = dict(type='SampleSimilarityConstraint', distance='inputs', normalisation=normalisation, **betas)
        model = model_of(ATTENTIVE, constraint=constraint)
        p = by_hand(model, INPUTS)[0].double()
        distance = torch.cdist(
            INPUTS.flatten(1).double(), INPUTS.flatten(1).double(), compute_mode='donot_use_mm_for_euclid_dist'
        )
        distance = distance / distance.max()
        same = different = 0.0
        for a in range(12):
            for b in range(12):
                for e in range(3):
                    for f in range(3):
                        term = p[a, e] * p[b, f] * distance[a, b]
                        same, different = (same + term, different) if e == f else (same, different + term)
        scale = 144 if normalisation == 'pairs' else 1
        expected = 0.3 * same / 3 / scale - 0.7 * different / 6 / 144
        found = model(INPUTS, LABELS, mode='loss')['loss_moe_similarity']
        assert found.item() == pytest.approx(expected.item(), rel=1e-4)


@pytest.mark.parametrize('blocked', ['outputs', 'keys', 'both'])
def test_gradient_reaches_experts_through_outputs_and_keys(blocked, monkeypatch):
    from moe_det.classification import mixture

    def run(nets, x):
        outputs, features = run_side_by_side(nets, x)
        if blocked in ('outputs', 'both'):
            outputs = outputs.detach()
        return outputs, features.detach() if blocked in ('keys', 'both') else features

    monkeypatch.setattr(mixture, 'run_side_by_side', run)
    model = model_of(ATTENTIVE)
    model(*batch(), mode='loss')['loss_cls'].backward()
    for expert in model.expert_group.experts:
        # the last layer makes the output alone; what lies before it makes the key as well
        last, before = expert.fcs[-1].weight.grad, expert.convs[0].weight.grad
        assert (last is not None and last.abs().sum() > 0) == (blocked == 'keys')
        assert (before is not None and before.abs().sum() > 0) == (blocked != 'both')
    assert model.router.gate.to_query.weight.grad.abs().sum() > 0


def test_dual_temperature():
    for gate in (PLAIN, ATTENTIVE):
        model = model_of(gate, temperature=4.0)
        losses = model(INPUTS, LABELS, mode='loss')
        assert {key for key in losses if 'loss' in key} == {'loss_experts', 'loss_gate'}
        p, o = by_hand(model, INPUTS)
        soft = (p.log() / 4).softmax(1)
        for key, weights in (('loss_experts', soft), ('loss_gate', p)):
            y = (weights[:, :, None] * o).sum(1)
            assert torch.allclose(losses[key], cross_entropy(y, LABELS), atol=1e-6)
        experts, gates = list(model.expert_group.parameters()), list(model.router.gate.parameters())
        for key, learning, still in (('loss_experts', experts, gates), ('loss_gate', gates, experts)):
            model.zero_grad()
            losses[key].backward(retain_graph=True)
            assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in learning)
            assert all(p.grad is None or p.grad.abs().sum() == 0 for p in still), (key, gate['type'])


def test_temperature_falls_by_epochs():
    model = model_of(temperature=8.0, temperature_decay=0.5)
    hub = MessageHub.get_instance('temperature falls')  # an own one: other tests leave theirs behind
    assert model.current_temperature() == 8
    hub.update_info('epoch', 2)  # 8 / 1.5 / 2
    assert model.current_temperature() == pytest.approx(8 / 1.5 / 2)


def test_single_classifier_has_no_gate():
    model = model_of(experts=1, top_k=1)
    losses = model(INPUTS, LABELS, mode='loss')
    expected = nn.functional.cross_entropy(model.expert_group.experts[0](INPUTS), LABELS)
    assert set(losses) == {'loss_cls', 'error'} and torch.allclose(losses['loss_cls'], expected)
    (found,) = model.eval()(INPUTS, LABELS, mode='predict')
    assert found['gates'] == {} and found['expert_classes'] == {}


def count_experts(model) -> list[int]:
    """Rows that each expert gets from now on."""
    rows = [0] * len(model.expert_group)

    def hook(number):
        def count(module, args, output):
            rows[number] += len(args[0])

        return count

    for i, expert in enumerate(model.expert_group.experts):
        expert.register_forward_hook(hook(i))
    return rows


@pytest.mark.parametrize('dispatch', ['sorted', 'all'])
def test_one_expert_per_image_at_test_time(dispatch):
    model = model_of(test_top_k=1, dispatch=dispatch).eval()
    assert model.router.test_top_k == 1  # known before the first forward
    inputs, labels = batch(30)
    rows = count_experts(model)
    with torch.no_grad():
        (found,) = model(inputs, labels, mode='predict')
    called = list(rows)
    p, o = by_hand(model, inputs)
    best = p.argmax(1)
    assert torch.allclose(found['probs'], o[torch.arange(30), best], atol=1e-5)
    assert torch.equal(found['expert_classes']['router'], o[torch.arange(30), best].argmax(1))
    if dispatch == 'sorted':
        assert called == torch.bincount(best, minlength=3).tolist() and len(best.unique()) > 1


def test_class_of_the_favourite_expert_in_a_sparse_mixture():
    for top_k in (1, 2, 3):
        model = model_of(test_top_k=top_k).eval()
        inputs, labels = batch(30)
        with torch.no_grad():
            (found,) = model(inputs, labels, mode='predict')
            p, o = by_hand(model, inputs)
        assert torch.equal(found['expert_classes']['router'], o[torch.arange(30), p.argmax(1)].argmax(1))


def test_published_top_1():
    model = model_of(mixture='top1_published', top_k=1)
    p, o = by_hand(model, INPUTS)
    best = p.argmax(1)
    y = (p.amax(1, keepdim=True) * o[torch.arange(12), best]).softmax(1)
    losses = model(INPUTS, LABELS, mode='loss')
    assert torch.allclose(losses['loss_cls'], cross_entropy(y, LABELS), atol=1e-6)
    losses['loss_cls'].backward()
    assert model.router.gate.net.fcs[0].weight.grad.abs().sum() > 0


# -- distillation ----------------------------------------------------------------------------------------------


def distilled(kl_weight: float, **kwargs) -> MixtureClassifier:
    gate = dict(type='DistilledGate', kl_weight=kl_weight, teacher=ATTENTIVE, student=PLAIN)
    return model_of(gate, seed=5, **kwargs)


@pytest.mark.parametrize('kl_weight', [0.0, 1.0])
def test_distillation_trains_the_gate_alone(kl_weight):
    source = model_of(ATTENTIVE, expert=DEEP)
    source(INPUTS, LABELS, mode='loss')  # moves the running statistics
    model = distilled(kl_weight, expert=DEEP)
    model.load_state_dict(source.state_dict(), strict=True)
    query, student = source.router.gate.query.net, model.router.gate.student.net
    for name in ('convs.0.weight', 'norms.0.running_mean', 'fcs.0.weight', 'fcs.1.bias'):
        assert torch.equal(student.state_dict()[name], query.state_dict()[name]), name
    before = {key: value.clone() for key, value in model.state_dict().items()}
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(3):
        optimizer.zero_grad()
        losses = model(INPUTS, LABELS, mode='loss')
        assert ('loss_moe_distillation' in losses) == (kl_weight > 0)
        sum(value for key, value in losses.items() if 'loss' in key).backward()
        optimizer.step()
    changed = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    assert changed and all(key.startswith('router.gate.student.') for key in changed), changed
    if kl_weight:
        source.eval()
        teacher = by_hand(source, INPUTS)[0]
        student = model.router.gate.student(INPUTS).log_softmax(1)
        expected = (teacher * (teacher.log() - student)).sum(1).mean()
        assert torch.allclose(model(INPUTS, LABELS, mode='loss')['loss_moe_distillation'], expected, atol=1e-5)


def test_sparse_inference_after_distillation():
    source = model_of(ATTENTIVE)
    model = distilled(0.0, test_top_k=1)
    model.load_state_dict(source.state_dict())
    model.eval()
    inputs, labels = batch(30)
    rows = count_experts(model)
    with torch.no_grad():
        sparse = model(inputs, labels, mode='predict')[0]['probs']
        assert sum(rows) == 30
        model.settings = type(model.settings)(**{**vars(model.settings), 'dispatch': 'all'})
        dense = model(inputs, labels, mode='predict')[0]['probs']
    assert torch.allclose(sparse, dense, atol=1e-6)
    # the finished model is that of the plain config
    plain = model_of(PLAIN, seed=9, test_top_k=1).eval()
    plain.load_state_dict(finish_distillation(model).state_dict())
    with torch.no_grad():
        assert torch.allclose(plain(inputs).softmax(1), sparse, atol=1e-6)


def test_sources_that_are_not_attentive():
    with pytest.raises(CheckpointError, match='a plain gate at router.gate: DistilledGate needs a model'):
        distilled(0.0).load_state_dict(model_of(PLAIN).state_dict())
    with pytest.raises(CheckpointError, match='num_experts=4'):
        distilled(0.0).load_state_dict(model_of(ATTENTIVE, experts=4).state_dict())
    other = model_of(dict(ATTENTIVE, query=dict(PLAIN, hidden=(9,))))
    with pytest.raises(CheckpointError, match=r'shape \(9, 32\) at router.gate.query.*\(8, 32\): load_from must name'):
        distilled(0.0).load_state_dict(other.state_dict())
    with pytest.raises(CheckpointError, match='DistilledGate has no trained teacher: set load_from'):
        distilled(0.0)(*batch(), mode='loss')


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(mixture='sum'), "model.mixture: unknown mixture 'sum'"),
        (dict(test_top_k=4), 'model.test_top_k, layer router: top_k=4: expected 1 to 3'),
        (dict(mixture='top1_published'), 'model.moe.top_k=3, model.test_top_k=None: .* one expert per image'),
        (dict(mixture='stochastic', top_k=2), "model.moe.top_k=2: mixture='stochastic' trains all experts"),
        (dict(temperature=2.0, top_k=2), 'model.moe.top_k=2: temperature trains all experts'),
        (dict(temperature=0.0), 'model.temperature=0.0: expected a number > 0'),
        (dict(temperature=2.0, mixture='stochastic'), "model.temperature: dual temperature is for mixture='output'"),
        (dict(unit='image'), "model.moe.unit='image': a mixture of classifiers takes 'level' alone"),
        (dict(copies_share=True), 'model.moe.copies_share=True: a mixture of classifiers takes False alone'),
        (dict(shared_expert=True), 'model.moe.shared_expert=True'),
        (dict(expert=dict(SMALL, depth=2)), "model: .*'depth'"),
        (dict(expert=dict(SMALL, image_size=3)), 'image_size=3: too small'),
        (dict(expert=dict(SMALL, hidden=())), 'expected at least one of each'),
        (dict(gate=dict(PLAIN, widths=(3,))), "model.moe.gate: ConvNetGate: .*'widths'"),
    ],
)
def test_bad_settings(options, message):
    with pytest.raises(MoEConfigError, match=message):
        model_of(**options)
