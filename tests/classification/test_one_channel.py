"""The first layer of grey images against PyTorch's convolution, norm, pooling and ReLU."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from moe_det.classification.networks import SmallConvNet, run_side_by_side
from moe_det.classification.one_channel import conv_pool, is_faster


def reference(x, weight, bias, padding, norm=None):
    y = F.conv2d(x, weight, bias, padding=padding)
    return F.max_pool2d((y if norm is None else norm(y)).relu(), 2)


def parameters(channels: int) -> tuple[torch.Tensor, torch.Tensor]:
    weight = torch.randn(channels, 1, 3, 3, dtype=torch.float64, requires_grad=True)
    return weight, torch.randn(channels, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize('padding', [0, 1])
@pytest.mark.parametrize(('height', 'width'), [(28, 28), (9, 12), (4, 7)])
@pytest.mark.parametrize('channels', [1, 5])
def test_outputs_and_gradients_are_those_of_conv_and_pooling(channels, height, width, padding):
    torch.manual_seed(0)
    x = torch.randn(6, 1, height, width, dtype=torch.float64)
    weight, bias = parameters(channels)
    ours, theirs = conv_pool(x, weight, bias, padding), reference(x, weight, bias, padding)
    torch.testing.assert_close(ours, theirs)
    outer = torch.randn_like(theirs)
    gradients = torch.autograd.grad(theirs, (weight, bias), outer)
    torch.testing.assert_close(torch.autograd.grad(ours, (weight, bias), outer), gradients)
    assert all(gradient.abs().max() > 0 for gradient in gradients)


def test_equal_values_pass_the_gradient_to_the_first():
    # a window whose four convolutions are equal, from patches that are not: only the first patch counts
    x = torch.zeros(1, 1, 4, 4, dtype=torch.float64)
    x[0, 0, 0, 0], x[0, 0, 3, 3] = 1.0, 2.0
    weight = torch.zeros(1, 1, 3, 3, dtype=torch.float64, requires_grad=True)
    bias = torch.ones(1, dtype=torch.float64, requires_grad=True)
    (ours,) = torch.autograd.grad(conv_pool(x, weight, bias, 0).sum(), weight)
    (theirs,) = torch.autograd.grad(reference(x, weight, bias, 0).sum(), weight)
    assert torch.equal(ours, theirs) and ours[0, 0, 0, 0] == 1 and ours.sum() == 1


def test_a_norm_sees_every_pixel():
    x = torch.randn(6, 1, 10, 8, dtype=torch.float64)
    weight, bias = parameters(3)
    norms = [nn.BatchNorm2d(3).double() for _ in range(2)]
    for norm in norms:
        nn.init.uniform_(norm.weight, -1, 1, generator=torch.Generator().manual_seed(0))
    ours, theirs = conv_pool(x, weight, bias, 0, norms[0]), reference(x, weight, bias, 0, norms[1])
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(norms[0].running_mean, norms[1].running_mean)
    torch.testing.assert_close(norms[0].running_var, norms[1].running_var)
    assert int(norms[0].num_batches_tracked) == 1
    found = torch.autograd.grad((ours**2).sum(), (weight, norms[0].weight))
    torch.testing.assert_close(found, torch.autograd.grad((theirs**2).sum(), (weight, norms[1].weight)))


def test_a_norm_in_evaluation_takes_its_running_statistics():
    x = torch.randn(6, 1, 10, 8, dtype=torch.float64)
    weight, bias = parameters(3)
    norm = nn.BatchNorm2d(3).double().eval()
    for name, low in (('running_mean', -1), ('running_var', 0.5), ('weight', -1), ('bias', -1)):
        nn.init.uniform_(getattr(norm, name), low, 2)
    before = norm.running_mean.clone()
    torch.testing.assert_close(conv_pool(x, weight, bias, 0, norm), reference(x, weight, bias, 0, norm))
    assert torch.equal(norm.running_mean, before) and int(norm.num_batches_tracked) == 0


def test_mixed_precision_is_that_of_the_convolution():
    x = torch.randn(6, 1, 12, 12)
    weight, bias = (p.detach().float().requires_grad_() for p in parameters(4))
    with torch.autocast('cpu', dtype=torch.bfloat16):
        ours, theirs = conv_pool(x, weight, bias, 0), reference(x, weight, bias, 0)
    assert ours.dtype == theirs.dtype == torch.bfloat16
    torch.testing.assert_close(ours, theirs, rtol=0.03, atol=0.03)
    ours.float().sum().backward()
    assert weight.grad.dtype == torch.float32 and weight.grad.abs().max() > 0


def test_it_steps_in_where_it_serves():
    x = torch.randn(2, 1, 9, 10)
    assert is_faster(x, None) and not is_faster(x, nn.BatchNorm2d(1)) and is_faster(x[:, :, 1:], nn.BatchNorm2d(1))
    assert not is_faster(x.expand(2, 3, 9, 10), None) and not is_faster(x.clone().requires_grad_(), None)
    assert not is_faster(x.to('meta'), None)


@pytest.mark.parametrize('norm', [(), (0,), (1,)], ids=str)
def test_networks_are_the_same_with_and_without(norm, monkeypatch):
    nets = [SmallConvNet(1, 10, 12, (2, 3), (7,), norm=norm).double() for _ in range(3)]
    x = torch.randn(5, 1, 12, 12, dtype=torch.float64)
    ours = run_side_by_side(nets, x)
    one = torch.stack([net(x) for net in nets], 1)
    monkeypatch.setattr('moe_det.classification.networks.is_faster', lambda *_: False)
    theirs = run_side_by_side(nets, x)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(one, theirs[0])
