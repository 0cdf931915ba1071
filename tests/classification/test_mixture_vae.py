"""The autoencoder with a mixture of decoders: its loss by hand, its two modes, its metric and a short training."""

from __future__ import annotations

import math

import moe_det.registry  # noqa: F401 - first: supplies the operators that mmdet's import needs

# isort: split
import pytest
import torch

from moe_det.classification.mixture_vae import LiteDecoder, MixtureVAE, ReconstructionMetric
from moe_det.errors import DataError, MoEConfigError
from moe_det.routing import UsageEntropyConstraint
from moe_det.routing.routing import Routing

TERMS = dict(type='UsageEntropyConstraint', usage=200.0, entropy=400.0)
MOE = dict(num_experts=3, top_k=3, soft_mixture=True, noise=False, gate=dict(type='MLPGate'), constraint=TERMS)


def model(**moe) -> MixtureVAE:
    torch.manual_seed(0)
    return MixtureVAE({**MOE, **moe}, latent=4)


def images(count: int = 5) -> torch.Tensor:
    return torch.rand(count, 1, 28, 28, generator=torch.Generator().manual_seed(0))


def test_the_published_terms_by_hand():
    # probabilities (.6, .2, .2) and (.2, .6, .2): means (.4, .4, .2), deviations (1, 1, -2)/15
    probs = torch.tensor([[0.6, 0.2, 0.2], [0.2, 0.6, 0.2]], dtype=torch.float64)
    routing = Routing(
        probs.log(), torch.tensor([[0, 1, 2]] * 2), probs.log(), True, torch.zeros(2, dtype=torch.long), 1
    )
    entropy = -0.6 * math.log(0.6) - 0.4 * math.log(0.2)
    expected = 200 * 3 * 6 / 225 + 400 * entropy
    assert UsageEntropyConstraint().loss(routing).item() == pytest.approx(expected)
    assert UsageEntropyConstraint(0.5, usage=0).loss(routing).item() == pytest.approx(200 * entropy)


def test_training_mixes_all_decoders_and_evaluation_runs_the_best():
    vae, x = model(), images()
    gate, decoders = vae.router.gate, vae.expert_group.experts
    losses_seed = 3
    torch.manual_seed(losses_seed)
    losses = vae.train()(x, mode='loss')
    torch.manual_seed(losses_seed)
    with torch.no_grad():
        mean, log_variance = vae.encode(x)
        z = mean + torch.randn_like(mean) * log_variance.exp().sqrt()
        p = gate(z[:, :, None, None]).softmax(1)
        drawn = sum(p[:, e, None, None, None] * decoders[e](z) for e in range(3))
        kl = 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).sum()
        usage = 200 * 3 * ((p.mean(0) - 1 / 3) ** 2).sum() + 400 * -(p * p.log()).sum(1).mean()
        assert losses['loss_reconstruction'].item() == pytest.approx(((drawn - x) ** 2).sum().item(), rel=1e-5)
        assert losses['loss_kl'].item() == pytest.approx(0.01 * kl.item(), rel=1e-4)
        assert losses['loss_moe_usage_entropy'].item() == pytest.approx(usage.item(), rel=1e-5)
        best = gate(mean[:, :, None, None]).argmax(1)
        alone = torch.cat([decoders[e](mean[i : i + 1]) for i, e in enumerate(best.tolist())])
        torch.testing.assert_close(vae.eval()(x), alone)
        (found,) = vae(x, mode='predict')
        torch.testing.assert_close(found['errors'], ((alone - x) ** 2).flatten(1).sum(1))
        assert torch.equal(found['experts'], best)


def test_one_expert_is_a_plain_autoencoder():
    vae = model(num_experts=1, top_k=1, soft_mixture=False)
    losses = vae.train()(images(), mode='loss')
    assert set(losses) == {'loss_reconstruction', 'loss_kl'} and vae.router is None
    assert vae.eval()(images(), mode='predict')[0]['experts'].tolist() == [0] * 5


def test_every_part_learns():
    vae, seen = model().train(), (torch.arange(8) % 2).float().view(8, 1, 1, 1).expand(8, 1, 28, 28)
    optimizer = torch.optim.Adam(vae.parameters(), lr=1e-3)
    first = None
    for _ in range(30):
        loss = sum(vae(seen, mode='loss').values())
        first = first or loss.item()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.8 * first
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in vae.parameters())


def test_a_lite_decoder_has_the_published_layers():
    shapes = [tuple(p.shape) for p in LiteDecoder(32).parameters()]
    assert shapes == [(392, 32), (392,), (16, 8, 3, 3), (16,), (1, 16, 3, 3), (1,)]
    assert LiteDecoder(32)(torch.zeros(0, 32, 1, 1)).shape == (0, 1, 28, 28)


def test_the_metric_counts_images_and_active_decoders():
    metric = ReconstructionMetric()
    metric.process({}, [dict(errors=torch.full((100,), 2.0), experts=torch.tensor([0] * 98 + [1, 4]))])
    metric.process({}, [dict(errors=torch.full((100,), 4.0), experts=torch.tensor([1] * 100))])
    assert metric.evaluate(200) == {'squared_error': 3.0, 'active_experts': 2}  # one image of 200 is no use
    with pytest.raises(DataError, match='no image'):
        ReconstructionMetric().compute_metrics([])


@pytest.mark.parametrize(
    ('keys', 'message'),
    [
        (dict(latent=0), 'model.latent=0: expected an integer >= 1'),
        (dict(beta=-1), 'model.beta=-1: expected a number >= 0'),
        (dict(moe={**MOE, 'unit': 'image'}), "model.moe.unit='image': a MixtureVAE takes 'level'"),
        (dict(moe={**MOE, 'constraint': dict(type='UsageEntropyConstraint', usage=-1)}), 'usage=-1'),
        (dict(moe={**MOE, 'gate': dict(type='MLPGate', hidden=())}), r'hidden=\(\): expected a list of integers'),
    ],
)
def test_wrong_values_are_one_message(keys, message):
    with pytest.raises(MoEConfigError, match=message):
        MixtureVAE(**{'moe': MOE, **keys})


def test_images_of_another_size_are_one_message():
    with pytest.raises(DataError, match=r'images of 28 x 28, got \(32, 32\)'):
        model()(torch.zeros(1, 1, 32, 32))
