"""Mixtures of classifiers and their losses (arXiv 2302.14703). All in the log domain, in at least fp32.

Experts return class logits z (R, K, C, ...), the classes on the third axis; o = softmax(z) are an expert's class
probabilities. Shape letters: R rows, E experts, K chosen, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

CLASS_AXIS = 2


def mix_categorical(outputs: Tensor, log_weights: Tensor, sums_to_one: bool = True) -> Tensor:
    """Output mixture: the log of y = sum_k w_k o_k (arXiv 2302.14703, output mixture; with K < E its top-k form).

    Weights that sum to less than 1 (K = 1, the full softmax probability) leave the rest to all classes alike. So y
    sums to 1 and the gate keeps its gradient.

    Args:
        outputs: (R, K, C, ...) class logits.
        log_weights: (R, K).
        sums_to_one: whether a row's weights sum to 1.

    Returns:
        (R, C, ...) log-probabilities.
    """
    dtype = torch.promote_types(outputs.dtype, torch.float32)
    with torch.autocast(outputs.device.type, enabled=False):
        log_o = torch.log_softmax(outputs.to(dtype), dim=CLASS_AXIS)
        log_weights = log_weights.to(dtype)
        trailing = [1] * (outputs.dim() - 2)
        mixed = torch.logsumexp(log_weights.reshape(*log_weights.shape, *trailing) + log_o, dim=1)
        if sums_to_one:
            return mixed
        largest = 1 - torch.finfo(dtype).eps / 2  # keeps log(1 - w) finite
        rest = torch.log1p(-log_weights.exp().sum(1).clamp_max(largest)) - math.log(outputs.shape[CLASS_AXIS])
        return torch.logaddexp(mixed, rest.reshape(-1, *trailing))


def mix_top1_published(outputs: Tensor, log_weights: Tensor, sums_to_one: bool = False) -> Tensor:
    """The log of softmax(w o): how the published code of arXiv 2302.14703 renormalises a single expert's output.

    The largest probability it can give is e / (e + C - 1). For reproduction; :func:`mix_categorical` is the mixture.

    Args:
        outputs: (R, 1, C, ...) class logits of the chosen expert.
        log_weights: (R, 1).
        sums_to_one: unused.

    Returns:
        (R, C, ...) log-probabilities.

    Raises:
        ValueError: more than one expert.
    """
    if outputs.shape[1] != 1:
        raise ValueError(f'the published top-1 mixture takes one expert per row, got {outputs.shape[1]}')
    dtype = torch.promote_types(outputs.dtype, torch.float32)
    with torch.autocast(outputs.device.type, enabled=False):
        o = torch.softmax(outputs[:, 0].to(dtype), dim=1)
        weights = log_weights.to(dtype).exp().reshape(-1, *[1] * (o.dim() - 1))
        return torch.log_softmax(weights * o, dim=1)


def mixture_nll(log_y: Tensor, labels: Tensor, epsilon: float = 0.0) -> Tensor:
    """Loss of the output mixture: the mean of -log(y_label + epsilon); epsilon is 1e-7 in the published code.

    Args:
        log_y: (R, C) log-probabilities.
        labels: (R,) true classes.
        epsilon: >= 0; bounds the loss of a sample whose class has probability 0.
    """
    if epsilon:
        log_y = torch.logaddexp(log_y, log_y.new_full((), math.log(epsilon)))
    return F.nll_loss(log_y, labels)


def jacobs_loss(outputs: Tensor, log_probs: Tensor, labels: Tensor) -> Tensor:
    """Loss of the stochastic mixture: -mean_x log sum_e p(e|x) exp(-CE(o_e(x), label) / 2).

    Each expert answers for itself, in proportion to how well it does (arXiv 2302.14703, after Jacobs et al. 1991).

    Args:
        outputs: (R, E, C) class logits of all experts.
        log_probs: (R, E) log-probabilities of the gate.
        labels: (R,) true classes.
    """
    dtype = torch.promote_types(outputs.dtype, torch.float32)
    with torch.autocast(outputs.device.type, enabled=False):
        log_o = torch.log_softmax(outputs.to(dtype), dim=CLASS_AXIS)
        of_label = log_o.gather(2, labels[:, None, None].expand(-1, outputs.shape[1], 1))[:, :, 0]
        return -torch.logsumexp(log_probs.to(dtype) + of_label / 2, dim=1).mean()


def sample_experts(log_probs: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Stochastic mixture: draws one expert per row, e ~ p(.|x) (arXiv 2302.14703).

    Args:
        log_probs: (R, E) log-probabilities of the gate; -inf is never drawn.
        generator: on the device of ``log_probs``; the default one when None.

    Returns:
        (R, 1) indices.
    """
    return torch.multinomial(log_probs.detach().exp(), 1, generator=generator)


def dual_temperature_losses(
    logits: Tensor,
    outputs: Tensor,
    loss: Callable[[Tensor], Tensor],
    temperature: float,
    mixture: Callable[[Tensor, Tensor], Tensor] = mix_categorical,
) -> tuple[Tensor, Tensor]:
    """Dual temperature: experts learn under a soft gate, the gate decides sharply (thesis behind arXiv 2302.14703).

    Experts get loss(y_T) with y_T mixed by softmax(logits / T), the gate gets loss(y_1); each is detached from the
    other's. Their sum gives both gradients in one backward; the paper's code takes the two steps one after the other.
    The keys of an attentive gate are part of the experts: detach them, else the gate's loss reaches the experts.

    Args:
        logits: (R, E) of the gate.
        outputs: (R, E, ...) of the experts.
        loss: mixture -> scalar.
        temperature: T > 0; above 1 it is softer.
        mixture: (outputs, log-weights) -> mixture.

    Returns:
        The experts' loss and the gate's.

    Raises:
        ValueError: a temperature that is not above 0.
    """
    if not temperature > 0:
        raise ValueError(f'temperature={temperature!r}: expected a number > 0')
    of_experts = loss(mixture(outputs, torch.log_softmax(logits.detach() / temperature, dim=1)))
    of_gate = loss(mixture(outputs.detach(), torch.log_softmax(logits, dim=1)))
    return of_experts, of_gate


def next_temperature(temperature: float, epoch: int, decay: float) -> float:
    """T / (1 + decay * epoch): the temperature after an epoch, as the published code lets it fall."""
    return temperature / (1 + decay * epoch)
