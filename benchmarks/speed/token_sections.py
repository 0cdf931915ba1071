"""Measurements of MoEFFN alone: thousands of tokens, against k dense FFNs, which is what its arithmetic costs."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass

import torch
from mmcv.cnn.bricks.transformer import FFN
from torch import Tensor, nn

from moe_det.layers import MoEFFN

from . import detectors
from .clock import ratio
from .layers import KL, layer_step, plant_routing
from .measurement import PHASES, Sections, times_and_ratios

DENSE_FFN, OURS, OVER_IDEAL = 'dense FFN', 'MoEFFN', 'MoEFFN / k dense FFNs'


@dataclass(frozen=True)
class TokenShape:
    """Size of the layer: tokens of one image, channels, hidden channels, E and K."""

    tokens: int = 10_000
    channels: int = 256
    hidden: int = 1024
    experts: int = 8
    top_k: int = 2

    def dense(self) -> nn.Module:
        """The FFN that the layer replaces, and that it is compared with."""
        return FFN(self.channels, self.hidden, ffn_drop=0.0)

    def layer(self, device: str) -> MoEFFN:
        """Our layer with a KL constraint and planted routing, of all experts alike."""
        layer = MoEFFN(self.dense(), 'moe_speed', num_experts=self.experts, top_k=self.top_k, constraint=KL).to(device)
        plant_routing(layer.router, self.tokens)
        return layer

    def input(self) -> Tensor:
        """(1, tokens, channels)."""
        return torch.randn(1, self.tokens, self.channels)


class TokenSections(Sections):
    """One layer of experts for tokens."""

    def _tokens(self, precision: str) -> None:
        plan = self.plan
        for phase in PHASES:
            settings = {'tokens': asdict(plan.tokens), 'phase': phase, 'precision': precision, 'rounds': plan.rounds}
            name, training = f'{phase} {precision}', phase == PHASES[0]
            self._keep('tokens', name, settings, self._token_times, precision, training)

    def _token_times(self, precision: str, training: bool) -> dict:
        plan, shape = self.plan, self.plan.tokens
        torch.manual_seed(0)
        x = shape.input().to(plan.device)
        layers = {DENSE_FFN: shape.dense().to(plan.device), OURS: shape.layer(plan.device)}
        context = detectors.precision_context(precision, plan.device)
        runs = {name: layer_step(layer, x, training, context) for name, layer in layers.items()}
        times = self._totals(runs, plan.rounds)
        ideal = [shape.top_k * seconds for seconds in times[DENSE_FFN]]
        return times_and_ratios(times, {OVER_IDEAL: ratio(times[OURS], ideal)})


def token_rows(
    done: Iterable[tuple[dict, dict]], cell: Callable[[dict], str]
) -> tuple[str, list[str], list[list[str]]]:
    """Title, heads and rows of the measurements' table.

    Args:
        done: settings and results.
        cell: how a ratio is written.
    """
    rows, shapes = [], []
    for settings, results in done:
        s = settings['tokens']
        shapes.append('{tokens:,} tokens of {channels} channels, {hidden} hidden, E={experts}, k={top_k}'.format(**s))
        times = [f'{results["times"][name]["median_ms"]:.1f}' for name in (DENSE_FFN, OURS)]
        found = results['ratios'][OVER_IDEAL]
        rows.append([settings['phase'], settings['precision'], *times, cell(found), str(found['n'])])
    heads = ['step', 'precision', 'dense FFN ms', 'MoEFFN ms', 'over k dense FFNs', 'n']
    return f'**Tokens** ({"; ".join(dict.fromkeys(shapes))}).', heads, rows
