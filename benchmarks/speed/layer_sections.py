"""Measurements of one layer alone: against dense experts, against other ways to run experts, and for tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict

import torch
from torch import nn

from . import detectors
from .clock import ratio
from .counters import count_macs, count_operators, kept_memory
from .layers import DENSE_EXPERT, DENSE_FFN, OURS, OVER_IDEAL, TOKENS, layer_step, moe_layer, pattern_layers
from .measurement import PHASES, Sections, times_and_ratios

ALL = 'E'


class LayerSections(Sections):
    """One layer of experts."""

    # -- the layer alone -----------------------------------------------------------------------------------------

    def _layer(self, precision: str) -> None:
        experts = self.plan.experts
        for k in (1, 2, ALL):
            self._phases('layer', f'k={k} {precision}', self._layer_times, precision, k, experts=experts, top_k=k)
        if self.plan.few_and_many is not None:
            for k in (1, 2):
                settings = {'experts': self.plan.few_and_many, 'top_k': k, 'active': 4}
                self._phases('layer', f'k={k} {precision}, four in use', self._flat_times, precision, k, **settings)

    def _phases(
        self, section: str, name: str, measure: Callable[..., dict], precision: str, *given: object, **settings: object
    ) -> None:
        for phase in PHASES:
            of_phase = self._layer_settings(precision, phase, **settings)
            self._keep(section, f'{phase} {name}', of_phase, measure, precision, *given, phase == PHASES[0])

    def _choices(self) -> list[tuple[int, int]]:
        """E and K where there is something to choose."""
        return [(experts, top_k) for experts in self.plan.experts for top_k in (1, 2) if top_k != experts]

    def _layer_settings(self, precision: str, phase: str, **more: object) -> dict:
        plan = self.plan
        return {'layer': asdict(plan.layer), 'phase': phase, 'precision': precision, 'rounds': plan.rounds, **more}

    def _layer_runs(self, layers: dict[str, nn.Module], precision: str, training: bool) -> dict[str, Callable]:
        torch.manual_seed(0)
        x = self.plan.layer.maps().to(self.plan.device)
        context = detectors.precision_context(precision, self.plan.device)
        dense = self.plan.layer.expert().to(self.plan.device)
        layers = {DENSE_EXPERT: dense, **layers}
        return {name: layer_step(layer, x, training, context) for name, layer in layers.items()}

    def _layer_times(self, precision: str, top_k: int | str, training: bool) -> dict:
        plan = self.plan
        layers = {
            f'E={experts}': moe_layer(plan.layer, experts, experts if top_k == ALL else top_k, plan.device)
            for experts in plan.experts
        }
        of = self._totals(self._layer_runs(layers, precision, training), plan.rounds)
        dense = of[DENSE_EXPERT]
        ratios = {}
        for experts in plan.experts:
            chosen = experts if top_k == ALL else top_k
            ratios[f'E={experts} / {DENSE_EXPERT}'] = ratio(of[f'E={experts}'], dense)
            ideal = [chosen * seconds for seconds in dense]
            ratios[f'E={experts} / k dense experts'] = ratio(of[f'E={experts}'], ideal)
        return times_and_ratios(of, ratios)

    def _flat_times(self, precision: str, top_k: int, training: bool) -> dict:
        few, many = self.plan.few_and_many
        layers = {f'E={e}': moe_layer(self.plan.layer, e, top_k, self.plan.device, active=4) for e in (few, many)}
        of = self._totals(self._layer_runs(layers, precision, training), self.plan.rounds)
        ratios = {f'E={many} / E={few}': ratio(of[f'E={many}'], of[f'E={few}'])}
        return times_and_ratios(of, ratios)

    # -- other patterns ------------------------------------------------------------------------------------------

    def _patterns(self, precision: str) -> None:
        for e, k in self._choices():
            name = f'E={e} k={k} {precision}'
            self._phases('patterns', name, self._pattern_times, precision, e, k, experts=e, top_k=k)

    def _pattern_times(self, precision: str, experts: int, top_k: int, training: bool) -> dict:
        layers = pattern_layers(moe_layer(self.plan.layer, experts, top_k, self.plan.device))
        of = self._totals(self._layer_runs(layers, precision, training), self.plan.rounds)
        ratios = {f'{name} / {DENSE_EXPERT}': ratio(of[name], of[DENSE_EXPERT]) for name in layers}
        ratios.update({f'{name} / {OURS}': ratio(of[name], of[OURS]) for name in layers if name != OURS})
        return times_and_ratios(of, ratios)

    # -- memory and counts ---------------------------------------------------------------------------------------

    def _layers_memory(self, precision: str) -> None:
        for e, k in self._choices():
            settings = self._layer_settings(precision, PHASES[0], experts=e, top_k=k, active=4)
            del settings['rounds']
            self._keep('memory', f'layer E={e} k={k} {precision}', settings, self._layer_memory, precision, e, k)

    def _layer_memory(self, precision: str, experts: int, top_k: int) -> dict:
        plan, found = self.plan, {}
        layers = pattern_layers(moe_layer(plan.layer, experts, top_k, plan.device, active=4))
        context = detectors.precision_context(precision, plan.device)
        for name, layer in {DENSE_EXPERT: plan.layer.expert().to(plan.device), **layers}.items():
            x = plan.layer.maps().to(plan.device).requires_grad_()
            router = getattr(layer, 'router', None)

            def forward(layer: nn.Module = layer, x: torch.Tensor = x, router: nn.Module | None = router):
                with context():
                    output = layer(x).float().mean()
                return output if router is None else output + sum(router.collect().values())

            layer.train()
            counted = count_operators(lambda forward=forward: forward().backward())
            with torch.no_grad():
                rows = x.detach()  # torch's counter trips over views of a leaf that requires a gradient
                counted['macs'] = count_macs(lambda layer=layer, rows=rows: layer.eval()(rows))
            layer.train().zero_grad(set_to_none=True)
            x.grad = None
            found[name] = {**counted, **kept_memory(plan.device, forward, [x, *layer.parameters(), *layer.buffers()])}
        return {'patterns': found}

    # -- tokens, against k dense FFNs, which is what the arithmetic costs ---------------------------------------------

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
        layers = {DENSE_FFN: shape.dense().to(plan.device), TOKENS: shape.layer(plan.device)}
        context = detectors.precision_context(precision, plan.device)
        runs = {name: layer_step(layer, x, training, context) for name, layer in layers.items()}
        times = self._totals(runs, plan.rounds)
        ideal = [shape.top_k * seconds for seconds in times[DENSE_FFN]]
        return times_and_ratios(times, {OVER_IDEAL: ratio(times[TOKENS], ideal)})
