"""Mixtures of small classifiers: the models of arXiv 2302.14703."""

from __future__ import annotations

import dataclasses
from typing import cast

import torch
import torch.nn.functional as F
from mmengine.logging import MessageHub
from torch import Tensor

from ..checks import checked_number
from ..errors import MoEConfigError, unknown_name
from ..layers.settings import MoESettings
from ..routing.class_mixtures import (
    dual_temperature_losses,
    jacobs_loss,
    mix_categorical,
    mix_top1_published,
    mixture_nll,
    next_temperature,
    sample_experts,
)
from ..routing.dispatch import mix_all, plan_dispatch, run_sorted, touch_idle
from ..routing.router import Router
from ..routing.routing import Routing
from ..routing.rows import rows_of
from .base import MoEClassifier, choose_in_evaluation
from .networks import SmallConvNet, run_side_by_side

MIXTURES = {
    'output': mix_categorical,
    'stochastic': mix_categorical,
    'top1_published': mix_top1_published,
}


class MixtureClassifier(MoEClassifier):
    """E small classifiers and a gate that weighs their answers for each image (arXiv 2302.14703).

    Experts are ``SmallConvNet``; an attentive gate takes as key an expert's last hidden layer before its ReLU. With
    ``mixture='output'`` the probabilities are y = sum_e p(e|x) o_e(x) over the ``top_k`` experts and the loss is the
    mean of -log(y_label + 1e-7). ``'stochastic'`` draws one expert in evaluation, e ~ p(.|x), and trains with
    -mean log sum_e p(e|x) exp(-CE(o_e, label) / 2). ``'top1_published'`` is the output mixture of one expert as the
    published code renormalises it. In evaluation with ``top_k`` (or ``test_top_k``) below E only these experts run,
    unless the gate needs all; so they do in training. ``moe.num_experts=1`` is a single classifier without a gate.

    Args:
        num_classes: K.
        expert: keys of ``SmallConvNet`` for one expert, without ``num_outputs``.
        moe: keys of ``MoESettings``; ``unit``, ``grid``, ``balance_over`` and ``shared_expert`` stay at their defaults.
            Set ``noise=False`` for the paper's gates, which have none.
        mixture: ``'output'``, ``'stochastic'`` or ``'top1_published'``.
        temperature: T of dual temperature training: experts learn from the mixture by softmax(logits / T), the gate
            from that by softmax(logits); None trains both on the same loss.
        temperature_decay: d; each epoch e divides T by 1 + d e, counted from 1.
        data_preprocessor: normalises the inputs; None takes ``ClassificationPreprocessor`` without mean and std.
        test_top_k: number of experts in evaluation; None takes ``top_k``.
        init_cfg: mmengine's initialisation.

    Raises:
        MoEConfigError: an unknown key or value, or values that contradict each other.
    """

    epsilon = 1e-7  # of the published code, in the loss of the output mixture

    def __init__(
        self,
        num_classes: int,
        expert: dict,
        moe: dict,
        mixture: str = 'output',
        temperature: float | None = None,
        temperature_decay: float = 0.0,
        data_preprocessor: dict | None = None,
        test_top_k: int | None = None,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(num_classes, data_preprocessor, test_top_k, init_cfg)
        self.settings = MoESettings.from_config(dict(moe), 'model.moe')
        if mixture not in MIXTURES:
            raise MoEConfigError(f'model.mixture: {unknown_name("mixture", mixture, MIXTURES)}')
        self.mixture = mixture
        self._check(temperature)
        try:
            self.temperature = None if temperature is None else checked_number('temperature', temperature)
            self.temperature_decay = checked_number('temperature_decay', temperature_decay)
            self.expert_group = self.settings.build_experts(
                lambda: SmallConvNet(num_outputs=num_classes, **expert), MIXTURES[mixture]
            )
        except (TypeError, ValueError) as error:
            raise MoEConfigError(f'model: {error}') from error
        net = self._nets[0]
        self.router = self.settings.build_router(
            net.convs[0].in_channels, 'model.moe', label='classifier', key_channels=net.fcs[-1].in_features
        )
        if self.router is not None and self.router.gate.freezes_experts:
            self.expert_group.freeze()
        choose_in_evaluation(self, test_top_k)

    def _check(self, temperature: float | None) -> None:
        moe = self.settings
        for key, value, kept in (
            ('unit', moe.unit, 'level'),
            ('balance_over', moe.balance_over, 'all'),
            ('shared_expert', moe.shared_expert, False),
            ('copies_share', moe.copies_share, False),
            ('expert', moe.expert, None),
            ('mixes', moe.mixes, 'outputs'),
        ):
            if value != kept:
                raise MoEConfigError(f'model.moe.{key}={value!r}: a mixture of classifiers takes {kept!r} alone')
        if temperature is not None and not temperature > 0:
            raise MoEConfigError(f'model.temperature={temperature!r}: expected a number > 0')
        if self.mixture == 'top1_published' and (moe.top_k != 1 or self.test_top_k not in (None, 1)):
            raise MoEConfigError(
                f'model.moe.top_k={moe.top_k}, model.test_top_k={self.test_top_k}: '
                "mixture='top1_published' takes one expert per image"
            )
        all_experts = moe.top_k == moe.num_experts
        if (self.mixture == 'stochastic' or temperature is not None) and not all_experts:
            what = "mixture='stochastic'" if self.mixture == 'stochastic' else 'temperature'
            raise MoEConfigError(
                f'model.moe.top_k={moe.top_k}: {what} trains all experts; set top_k={moe.num_experts} and '
                'soft_mixture=True'
            )
        if self.mixture == 'stochastic' and temperature is not None:
            raise MoEConfigError("model.temperature: dual temperature is for mixture='output'")

    # -- decisions and experts ---------------------------------------------------------------------------------

    @property
    def _nets(self) -> list[SmallConvNet]:
        return cast('list[SmallConvNet]', list(self.expert_group.experts))

    def _run(self, router: Router, inputs: Tensor) -> tuple[Routing, Tensor | None]:
        """The gate's decision and, where all experts run, their logits (N, E, K)."""
        rows, layout = rows_of([inputs], 'level')
        if router.needs_keys:
            outputs, features = run_side_by_side(self._nets, inputs)
            keys = features.detach() if self.training and self.temperature is not None else features
            return router(rows, layout, [keys]), outputs
        routing = router(rows, layout)
        if self.settings.dispatch == 'all' or routing.indices.shape[1] == router.num_experts:
            return routing, run_side_by_side(self._nets, inputs)[0]
        return routing, None

    def _mix(self, inputs: Tensor, routing: Routing, outputs: Tensor | None) -> tuple[Tensor, Tensor]:
        """Log-probabilities (N, K), and the class (N,) that the chosen expert with the largest weight predicts."""
        best: list[Tensor] = []

        def mix(outputs: Tensor, log_weights: Tensor, sums_to_one: bool) -> Tensor:
            favourite = log_weights.detach().argmax(1)
            best.append(outputs.detach()[torch.arange(len(outputs), device=outputs.device), favourite].argmax(1))
            return MIXTURES[self.mixture](outputs, log_weights, sums_to_one)

        if outputs is not None:
            if self.mixture == 'top1_published':
                outputs = outputs.gather(1, routing.indices[:, :, None].expand(-1, -1, outputs.shape[2]))
                return mix(outputs, routing.log_weights, routing.sums_to_one), best[0]
            return mix_all(outputs, routing, 0, mix), best[0]
        experts = self._nets
        (plan,) = plan_dispatch([routing], [len(inputs)])[0]
        mixed = run_sorted(inputs, routing, plan, experts, mix)
        if self.training:
            mixed = touch_idle(mixed, [expert for i, expert in enumerate(experts) if i not in plan.active])
        return mixed, best[0] if best else mixed.argmax(1)

    def classify_with_experts(self, inputs: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Log-probabilities (N, K), and the class that the expert with the largest gate probability predicts."""
        if self.router is None:
            return torch.log_softmax(self.expert_group.experts[0](inputs), 1), {}
        routing, outputs = self._run(self.router, inputs)
        mixed, best = self._mix(inputs, routing, outputs)
        if self.mixture == 'stochastic' and not self.training:
            drawn = sample_experts(routing.over_experts(routing.log_weights, float('-inf')))
            alone = dataclasses.replace(routing, indices=drawn, log_weights=drawn * 0.0, sums_to_one=True)
            mixed = self._mix(inputs, alone, outputs)[0]
        return mixed, {'router': best}

    def classify(self, inputs: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, K) log-probabilities."""
        return self.classify_with_experts(inputs)[0]

    # -- training ----------------------------------------------------------------------------------------------

    def task_loss(self, inputs: Tensor, labels: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """The loss of the mixture; with dual temperature ``loss_experts`` and ``loss_gate``."""
        if self.router is None:
            scores = self.expert_group.experts[0](inputs)
            return {'loss_cls': F.cross_entropy(scores, labels)}, scores
        routing, outputs = self._run(self.router, inputs)
        temperature = self.current_temperature()
        if self.training and temperature is not None:
            assert outputs is not None  # temperature needs all experts
            of_experts, of_gate = dual_temperature_losses(
                routing.logits, outputs, lambda y: mixture_nll(y, labels, self.epsilon), temperature
            )
            with torch.no_grad():
                scores = self._mix(inputs, routing, outputs)[0]
            return {'loss_experts': of_experts, 'loss_gate': of_gate}, scores
        if self.mixture == 'stochastic':
            assert outputs is not None  # it needs all experts too
            with torch.no_grad():
                scores = self._mix(inputs, routing, outputs)[0]
            return {'loss_cls': jacobs_loss(outputs, routing.log_probs, labels)}, scores
        scores = self._mix(inputs, routing, outputs)[0]
        return {'loss_cls': mixture_nll(scores, labels, self.epsilon)}, scores

    def current_temperature(self) -> float | None:
        """T in the epoch that mmengine's runner is in, the first one without a runner; None without a temperature."""
        temperature = self.temperature
        if temperature is None:
            return None
        for epoch in range(1, MessageHub.get_current_instance().get_info('epoch', 0) + 1):
            temperature = next_temperature(temperature, epoch, self.temperature_decay)
        return temperature
