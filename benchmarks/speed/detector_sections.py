"""Measurements of whole detectors."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable

import torch
from common import ROOT
from torch import nn

from moe_det.cost.model_cost import parameter_counts
from moe_det.cost.part_costs import WHOLE, model_cost
from moe_det.running.launch import load_config

from . import detectors
from .clock import ratio, summary
from .counters import count_operators, count_synchronisations, kept_memory
from .measurement import PHASES, Sections, times_and_ratios
from .profiles import by_kind, largest_differences, profile_in_turn


class DetectorSections(Sections):
    """Ours against plain RetinaNet, as a whole."""

    # -- the whole detector --------------------------------------------------------------------------------------

    def _whole(self, precision: str) -> None:
        plan, models = self.plan, self._detectors(max(self.plan.batches))
        self._cases('whole', plan.detector_cases, precision, plan.detector_rounds, self._detector_times, models)

    def _cases(
        self,
        section: str,
        cases: Iterable[tuple[int, tuple[int, int]]],
        precision: str,
        rounds: int,
        measure: Callable[..., dict],
        *given: object,
    ) -> None:
        for images, size in cases:
            for phase in PHASES:
                settings = {'batch': images, 'size': size, 'phase': phase, 'precision': precision, 'rounds': rounds}
                name = f'{phase} B={images} {size[0]}x{size[1]} {precision}'
                self._keep(section, name, settings, measure, *given, images, size, precision, phase == PHASES[0])

    def _detectors(self, images: int) -> dict[str, nn.Module]:
        return {
            name: detectors.build(config, options, self.plan.device, images)
            for name, (config, options) in detectors.DETECTORS.items()
        }

    def _detector_runs(
        self, models: dict[str, nn.Module], images: int, size: tuple[int, int], precision: str, training: bool
    ) -> dict[str, Callable]:
        device, runs = self.plan.device, {}
        make = detectors.train_step if training else detectors.inference
        for name, model in models.items():
            model = (model if training else detectors.with_whole_experts(model)).train(training)
            runs[name] = make(model, detectors.batch(model, images, size, training), precision, device)
        return runs

    def _detector_times(
        self, models: dict[str, nn.Module], images: int, size: tuple[int, int], precision: str, training: bool
    ) -> dict:
        plan, runs = self.plan, self._detector_runs(models, images, size, precision, training)
        dense = models[detectors.DENSE]
        data = detectors.batch(dense, images, size, training)
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

    # -- what one call per image costs, whatever the experts ---------------------------------------------------------

    def _separate(self, precision: str) -> None:
        cases = [(images, self.plan.size) for images in self.plan.batches if images > 1]
        self._cases('separate', cases, precision, self.plan.rounds, self._separate_times)

    def _separate_times(self, images: int, size: tuple[int, int], precision: str, training: bool) -> dict:
        plan = self.plan
        dense = detectors.build(*detectors.DETECTORS[detectors.DENSE], plan.device, images).train(training)

        def branches(model: nn.Module, count: int) -> Callable:
            data = detectors.batch(model, count, size, training)
            return detectors.branch_alone(model, data, precision, plan.device, training)

        single = [branches(copy.deepcopy(dense), 1) for _ in range(images)]
        runs = {'batch': branches(dense, images), 'image by image': lambda mark: [run(mark) for run in single]}
        times = self._totals(runs, plan.rounds, marks=True)
        return times_and_ratios(times, {'image by image / batch': ratio(times['image by image'], times['batch'])})

    # -- where the difference comes from -------------------------------------------------------------------------

    def _profile(self, precision: str) -> None:
        models, rounds = self._detectors(max(self.plan.batches)), self.plan.profile_rounds
        cases = [(images, self.plan.size) for images in self.plan.batches]
        self._cases('profile', cases, precision, rounds, self._detector_profiles, models)

    def _detector_profiles(
        self, models: dict[str, nn.Module], images: int, size: tuple[int, int], precision: str, training: bool
    ) -> dict:
        runs = self._detector_runs(models, images, size, precision, training)
        found = profile_in_turn(runs, self.plan.profile_rounds, min(2, self.plan.warm_up), self.plan.device)
        dense = found[detectors.DENSE]
        return {
            'by_kind': {name: by_kind(spent) for name, spent in found.items()},
            'largest_differences': {
                name: largest_differences(spent, dense) for name, spent in found.items() if name != detectors.DENSE
            },
        }

    # -- the optimizer ---------------------------------------------------------------------------------------------

    def _optimizer(self, precision: str) -> None:
        if precision != self.plan.precisions[0]:  # parameters are fp32 whatever the precision
            return
        for name in (detectors.DENSE, 'k=2', detectors.MANY):
            self._keep('optimizer', name, {'rounds': self.plan.rounds}, self._optimizer_times, name)

    def _optimizer_times(self, name: str) -> dict:
        config, options = detectors.WITH_MANY[name]
        model = detectors.build(config, options, self.plan.device, 1)
        of = self._totals(detectors.optimizer_steps(model), self.plan.rounds)
        ratios = {f'{kind} / one by one': ratio(of[kind], of['one by one']) for kind in of if kind != 'one by one'}
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        return {'params': trained, **times_and_ratios(of, ratios)}

    # -- memory and counts ---------------------------------------------------------------------------------------

    def _detectors_memory(self, precision: str) -> None:
        plan = self.plan
        images = min(plan.batches)
        for name, (config, options) in detectors.WITH_MANY.items():
            settings = {'batch': images, 'size': plan.size, 'precision': precision}
            given = config, options, images, precision
            self._keep('memory', f'detector {name} {precision}', settings, self._detector_memory, *given)

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
        results['kept'] = kept_memory(plan.device, forward, [data['inputs'], *model.parameters(), *model.buffers()])
        params, active = parameter_counts(detectors.with_whole_experts(model))
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
        **{f'{name} / dense': ratio(of[name], dense) for name in detectors.AT_DENSE_COST},
        'FLOP-ideal of k=2 / dense': ratio(ideal, dense),
    }
