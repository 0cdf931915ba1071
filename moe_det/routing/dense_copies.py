"""Experts that start from the dense branch they replace."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from .experts import ExpertGroup

PREDICTOR = 'predictor'  # an expert's child that predicts, whose channels mean something


@dataclass(frozen=True)
class DenseCopy:
    """What a checkpoint of the dense branch gave the experts that replace it.

    Attributes:
        copied: its tensors that every expert got.
        problems: a sentence about each tensor that no expert could take.
    """

    copied: tuple[str, ...]
    problems: tuple[str, ...]


def copy_dense_to_experts(
    state_dict: dict[str, Tensor],
    dense: dict[str, str],
    experts: ExpertGroup,
    prefix: str,
    noise: float,
    redraw: float = 0.0,
    part: Callable[[str, Tensor, int], Tensor] | None = None,
) -> list[str]:
    """Rewrites a state dict in place so that every expert starts from the dense branch it replaces.

    Each expert's floating-point parameters get independent noise of ``noise`` times the parameter's own standard
    deviation, because identical experts would stay identical under equal routing. Buffers are copied as they are.
    The noise is a function of the weights that the experts had before, not of the random generators: data-parallel
    wrappers make processes agree on weights before a checkpoint is loaded, but nothing makes them agree on generators
    (mmengine's ``diff_rank_seed``), and nothing sends the copies to the other processes afterwards.

    In a group with a common part, the dense branch becomes that part, and noise and redrawn channels become the
    differences. A shared expert alongside shards is one more slice, without noise.

    Args:
        state_dict: holds the dense tensors; they are replaced by one set per expert.
        dense: dense key -> name of the parameter inside an expert.
        experts: the group to fill.
        prefix: prefix of the group in the state dict, ending in ``experts.``.
        noise: relative standard deviation of the noise, >= 0.
        redraw: share of each convolution's output channels, in [0, 1), that is redrawn for every expert, with mean
            and standard deviation of the convolution's weights. A child named ``predictor`` keeps its channels.
        part: (name in an expert, dense tensor, expert) -> what the expert takes of it; all of it by default. Experts
            of one slot must take the same. A shared slice asks for the expert after the last.

    Returns:
        Sentences about tensors that could not be copied; the experts keep their own initial values there. The group
        remembers them as ``dense_copy``.
    """
    parameters = dict(experts.experts[0].named_parameters())
    own = dict(experts.experts[0].state_dict())
    redrawn = _convolutions(experts.experts[0]) if redraw else frozenset()
    generator = _generator_of(experts)
    take = part or (lambda name, value, expert: value)
    copied: list[str] = []
    problems: list[str] = []
    for key, name in dense.items():
        value = state_dict.pop(key)
        if name not in own:
            problems.append(f'{key}: an expert has no {name}')
            continue
        parts = [take(name, value, expert) for expert in range(len(experts))]
        if own[name].shape != parts[0].shape:
            problems.append(f'{key}: shape {tuple(parts[0].shape)}, an expert has {tuple(own[name].shape)}')
            continue
        for expert, of_expert in enumerate(parts):
            copy = of_expert.clone()
            if name in parameters:
                _add_noise(copy, noise, generator)
            if name in redrawn:
                _redraw_channels(copy, of_expert, redraw, generator)
            if experts.common is not None and name in parameters:
                slot, number = divmod(expert, experts.copies)
                if not number:
                    state_dict[f'{prefix.removesuffix("experts.")}common.{slot}.{name}'] = of_expert.clone()
                copy -= of_expert
            state_dict[f'{prefix}{expert}.{name}'] = copy
        if experts.slices > experts.slots:
            of_shared = take(name, value, len(experts)).clone()
            state_dict[f'{prefix.removesuffix("experts.")}shared.{name}'] = of_shared
        copied.append(key)
    experts.dense_copy = DenseCopy(tuple(copied), tuple(problems))
    return problems


def _add_noise(copy: Tensor, noise: float, generator: torch.Generator) -> None:
    """Adds noise of ``noise`` times the tensor's standard deviation, in place."""
    deviation = copy.float().std().item() if noise and copy.numel() > 1 else 0.0
    if deviation:
        copy += noise * deviation * torch.randn(copy.shape, generator=generator).to(copy)


def _redraw_channels(copy: Tensor, source: Tensor, share: float, generator: torch.Generator) -> None:
    """Redraws a share of the output channels in place, with mean and deviation of ``source``."""
    channels = torch.randperm(len(copy), generator=generator)[: round(share * len(copy))]
    drawn = torch.randn(len(channels), *copy.shape[1:], generator=generator)
    source = source.float()
    copy[channels.to(copy.device)] = (source.mean().cpu() + source.std().cpu() * drawn).to(copy)


def _convolutions(expert: nn.Module) -> frozenset[str]:
    """Names of the weights of an expert's convolutions, the predictor's left out."""
    return frozenset(
        f'{path}.weight' if path else 'weight'
        for path, module in expert.named_modules()
        if isinstance(module, nn.Conv2d) and path.split('.')[0] != PREDICTOR
    )


def _generator_of(experts: ExpertGroup) -> torch.Generator:
    """A generator seeded by the first expert's weights."""
    digest = hashlib.blake2b(digest_size=7)
    for weight in experts.weights_of(0).values():
        digest.update(weight.detach().cpu().float().numpy().tobytes())
    return torch.Generator().manual_seed(int.from_bytes(digest.digest(), 'little'))
