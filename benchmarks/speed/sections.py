"""What moe_speed.py measures, section by section; each measurement goes into the record as soon as it is done."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import asdict

import torch
from torch import nn

from moe_det.engine.console import say
from moe_det.engine.launch import load_config
from moe_det.engine.model_cost import parameter_counts
from moe_det.engine.part_costs import WHOLE, model_cost

from . import detectors
from .clock import interleave, ratio, summary
from .counters import count_macs, count_operators, count_synchronisations, cuda_memory, saved_bytes
from .layers import OURS, layer_step, moe_layer, pattern_layers
from .plan import Plan
from .record import ROOT, Record

DENSE_EXPERT = 'dense expert'
PHASES = ('training', 'inference')
ALL = 'E'


class Measurement:
    """Runs sections and keeps what they find.

    Args:
        plan: what to measure.
        record: takes the results.
        made: machine, versions and command.
    """

    def __init__(self, plan: Plan, record: Record, made: dict) -> None:
        self.plan, self.record, self.made = plan, record, made

    def run(self, section: str) -> None:
        """Measures one section: ``'whole'``, ``'layer'``, ``'patterns'``, ``'memory'`` or ``'optimizer'``."""
        for precision in self.plan.precisions:
            set_precision(precision)
            getattr(self, f'_{section}')(precision)

    def _keep(self, section: str, name: str, settings: dict, measure: Callable[[], dict]) -> None:
        """Measures and records, unless a resumed record has it; out of memory is a result too."""
        if self.record.has(section, name, settings):
            say(f'{section}, {name}: in the record')
            return
        try:
            results = measure()
        except torch.cuda.OutOfMemoryError:
            results = {'error': 'out of memory'}
        if self.plan.device.startswith('cuda'):
            gc.collect()
            torch.cuda.empty_cache()
        self.record.add(section, name, settings, self.made, results)
        brief = {key: value['median'] for key, value in results.get('ratios', {}).items()}
        say(f'{section}, {name}: {results.get("error") or brief or "done"}')

    def _time(self, runs: dict[str, Callable], rounds: int, marks: bool = False) -> dict:
        return interleave(runs, rounds, min(self.plan.warm_up, rounds), self.plan.device, marks)

    # -- the whole detector --------------------------------------------------------------------------------------

    def _whole(self, precision: str) -> None:
        plan = self.plan
        models = {
            name: detectors.build(config, options, plan.device, max(plan.batches))
            for name, (config, options) in detectors.DETECTORS.items()
        }
        for images in plan.batches:
            for phase in PHASES:
                settings = {'batch': images, 'size': plan.size, 'phase': phase, 'precision': precision}
                settings['rounds'] = plan.detector_rounds

                def measure(images: int = images, training: bool = phase == PHASES[0]) -> dict:
                    return self._detector_times(models, images, precision, training)

                self._keep('whole', f'{phase} B={images} {precision}', settings, measure)

    def _detector_times(self, models: dict[str, nn.Module], images: int, precision: str, training: bool) -> dict:
        plan = self.plan
        make = detectors.train_step if training else detectors.inference
        runs = {}
        for name, model in models.items():
            model.train(training)
            runs[name] = make(model, detectors.batch(model, images, plan.size, training), precision, plan.device)
        dense = models[detectors.DENSE]
        data = detectors.batch(dense, images, plan.size, training)
        runs['branch alone'] = detectors.branch_alone(dense, data, precision, plan.device, training)
        times = self._time(runs, plan.detector_rounds, marks=True)
        of = {name: phases['total'] for name, phases in times.items()}
        results = {'times': {name: {p: summary(s) for p, s in phases.items()} for name, phases in times.items()}}
        results['ratios'] = detector_ratios(of)
        if training:
            steps = {
                name: [total - last for total, last in zip(p['total'], p['optimizer'], strict=True)]
                for name, p in times.items()
                if 'optimizer' in p
            }
            results['ratios_without_optimizer'] = detector_ratios({**steps, 'branch alone': of['branch alone']})
        return results

    # -- the layer alone -----------------------------------------------------------------------------------------

    def _layer(self, precision: str) -> None:
        plan = self.plan
        for top_k in (1, 2, ALL):
            for phase in PHASES:
                settings = self._layer_settings(precision, phase, experts=plan.experts, top_k=top_k)

                def measure(top_k: int | str = top_k, training: bool = phase == PHASES[0]) -> dict:
                    return self._layer_times(precision, top_k, training)

                self._keep('layer', f'{phase} k={top_k} {precision}', settings, measure)
        if plan.few_and_many is None:
            return
        for top_k in (1, 2):
            for phase in PHASES:
                settings = self._layer_settings(precision, phase, experts=plan.few_and_many, top_k=top_k, active=4)

                def measure(top_k: int = top_k, training: bool = phase == PHASES[0]) -> dict:
                    return self._flat_times(precision, top_k, training)

                self._keep('layer', f'{phase} k={top_k} {precision}, four in use', settings, measure)

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
        times = self._time(self._layer_runs(layers, precision, training), plan.rounds)
        of = {name: phases['total'] for name, phases in times.items()}
        dense = of[DENSE_EXPERT]
        ratios = {}
        for experts in plan.experts:
            chosen = experts if top_k == ALL else top_k
            ratios[f'E={experts} / {DENSE_EXPERT}'] = ratio(of[f'E={experts}'], dense)
            ideal = [chosen * seconds for seconds in dense]
            ratios[f'E={experts} / k dense experts'] = ratio(of[f'E={experts}'], ideal)
        return {'times': {name: summary(seconds) for name, seconds in of.items()}, 'ratios': ratios}

    def _flat_times(self, precision: str, top_k: int, training: bool) -> dict:
        few, many = self.plan.few_and_many
        layers = {f'E={e}': moe_layer(self.plan.layer, e, top_k, self.plan.device, active=4) for e in (few, many)}
        times = self._time(self._layer_runs(layers, precision, training), self.plan.rounds)
        of = {name: phases['total'] for name, phases in times.items()}
        ratios = {f'E={many} / E={few}': ratio(of[f'E={many}'], of[f'E={few}'])}
        return {'times': {name: summary(seconds) for name, seconds in of.items()}, 'ratios': ratios}

    # -- other patterns ------------------------------------------------------------------------------------------

    def _patterns(self, precision: str) -> None:
        for experts in self.plan.experts:
            for top_k in (1, 2):
                if top_k == experts:
                    continue
                for phase in PHASES:
                    settings = self._layer_settings(precision, phase, experts=experts, top_k=top_k)

                    def measure(
                        experts: int = experts, top_k: int = top_k, training: bool = phase == PHASES[0]
                    ) -> dict:
                        return self._pattern_times(precision, experts, top_k, training)

                    self._keep('patterns', f'{phase} E={experts} k={top_k} {precision}', settings, measure)

    def _pattern_times(self, precision: str, experts: int, top_k: int, training: bool) -> dict:
        layers = pattern_layers(moe_layer(self.plan.layer, experts, top_k, self.plan.device))
        times = self._time(self._layer_runs(layers, precision, training), self.plan.rounds)
        of = {name: phases['total'] for name, phases in times.items()}
        ratios = {f'{name} / {DENSE_EXPERT}': ratio(of[name], of[DENSE_EXPERT]) for name in layers}
        ratios.update({f'{name} / {OURS}': ratio(of[name], of[OURS]) for name in layers if name != OURS})
        return {'times': {name: summary(seconds) for name, seconds in of.items()}, 'ratios': ratios}

    # -- the optimizer ---------------------------------------------------------------------------------------------

    def _optimizer(self, precision: str) -> None:
        if precision != self.plan.precisions[0]:  # parameters are fp32 whatever the precision
            return
        for name in (detectors.DENSE, 'k=2', detectors.MANY):
            settings = {'rounds': self.plan.rounds}

            def measure(name: str = name) -> dict:
                return self._optimizer_times(name)

            self._keep('optimizer', name, settings, measure)

    def _optimizer_times(self, name: str) -> dict:
        config, options = detectors.WITH_MANY[name]
        model = detectors.build(config, options, self.plan.device, 1)
        times = self._time(detectors.optimizer_steps(model), self.plan.rounds)
        of = {kind: phases['total'] for kind, phases in times.items()}
        default = of['one by one']
        return {
            'params': sum(p.numel() for p in model.parameters() if p.requires_grad),
            'times': {kind: summary(seconds) for kind, seconds in of.items()},
            'ratios': {f'{kind} / one by one': ratio(of[kind], default) for kind in of if kind != 'one by one'},
        }

    # -- memory and counts ---------------------------------------------------------------------------------------

    def _memory(self, precision: str) -> None:
        plan = self.plan
        for experts in plan.experts:
            for top_k in (1, 2):
                if top_k == experts:
                    continue
                settings = self._layer_settings(precision, PHASES[0], experts=experts, top_k=top_k, active=4)
                del settings['rounds']

                def measure(experts: int = experts, top_k: int = top_k) -> dict:
                    return self._layer_memory(precision, experts, top_k)

                self._keep('memory', f'layer E={experts} k={top_k} {precision}', settings, measure)
        images = min(plan.batches)
        for name, (config, options) in detectors.WITH_MANY.items():
            settings = {'batch': images, 'size': plan.size, 'precision': precision}

            def measure(config: str = config, options: dict = options) -> dict:
                return self._detector_memory(config, options, images, precision)

            self._keep('memory', f'detector {name} {precision}', settings, measure)

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
                counted['macs'] = count_macs(lambda layer=layer, x=x: layer.eval()(x))
            layer.train().zero_grad(set_to_none=True)
            x.grad = None
            found[name] = {**counted, **self._kept(forward, [x, *layer.parameters(), *layer.buffers()])}
        return {'patterns': found}

    def _kept(self, forward: Callable[[], torch.Tensor], beside: list[torch.Tensor]) -> dict:
        """Memory that a training step takes beyond parameters: on a CPU what is saved, else what is allocated."""
        kept = {'saved_bytes': saved_bytes(forward, beside)}
        if self.plan.device.startswith('cuda'):
            kept.update(cuda_memory(forward, lambda loss: loss.backward()))
        return kept

    def _detector_memory(self, config: str, options: dict, images: int, precision: str) -> dict:
        plan = self.plan
        model = detectors.build(config, options, plan.device, images).train()
        data = detectors.batch(model, images, plan.size, True)
        context = detectors.precision_context(precision, plan.device)

        def forward() -> torch.Tensor:
            with context():
                return detectors.loss_of(model, data)

        with torch.no_grad(), context():
            maps = tuple(x.detach() for x in model.extract_feat(data['inputs']))
        model.eval()

        def head() -> None:
            with torch.no_grad(), context():
                model.bbox_head(maps)

        results = {'head': count_operators(head)}
        if plan.device.startswith('cuda'):
            results['head']['synchronisations'] = count_synchronisations(head)
        model.train()
        if plan.device.startswith('cuda'):
            # the optimizer's state exists before its memory is measured
            optimizer = detectors.make_optimizer(model)
            forward().backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        results['kept'] = self._kept(forward, [data['inputs'], *model.parameters(), *model.buffers()])
        params, active = parameter_counts(model)
        path = config if '::' in config else str(ROOT / 'configs' / config)
        cost = model_cost(load_config(path, options).model, plan.size).parts[WHOLE]
        results['cost'] = {
            'params': params,
            'active_params': active,
            'macs_per_image': cost.macs,
            'active_macs_per_image': cost.active_macs,
        }
        return results


def detector_ratios(of: dict[str, list[float]]) -> dict[str, dict]:
    """Ratios to the dense detector and to the FLOP-ideal: its time and, for each expert beyond one, a branch's."""
    dense, branch = of[detectors.DENSE], of['branch alone']
    ideal = [whole + part for whole, part in zip(dense, branch, strict=True)]
    return {
        'k=1 / dense': ratio(of['k=1'], dense),
        'k=2 / dense': ratio(of['k=2'], dense),
        'k=2 / FLOP-ideal': ratio(of['k=2'], ideal),
        f'{detectors.MATCHED} / dense': ratio(of[detectors.MATCHED], dense),
        'FLOP-ideal of k=2 / dense': ratio(ideal, dense),
    }


def set_precision(precision: str) -> None:
    """Allows TF32 for ``'tf32'`` and, beside autocast, for ``'bf16'``; plain fp32 otherwise. Never searches kernels."""
    allowed = precision != 'fp32'
    torch.backends.cuda.matmul.allow_tf32 = allowed
    torch.backends.cudnn.allow_tf32 = allowed
    # a search would time kernels in the middle of a round, for every new number of rows again
    torch.backends.cudnn.benchmark = False
