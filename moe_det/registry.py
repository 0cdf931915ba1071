"""The one list of names that configs may use.

A new class needs one line here. Gates and constraints have registries of their own; everything else goes into
mmdet's registries, so that existing configs find it without a scope prefix. Importing this module checks the stack,
supplies what it lacks and registers all classes.
"""

from __future__ import annotations

import importlib

from .compat import prepare_stack
from .errors import MoEConfigError, unknown_name

prepare_stack()  # before anything imports mmdet: names the missing package, or supplies the missing operators

from mmdet.registry import DATA_SAMPLERS, DATASETS, HOOKS, METRICS, MODELS, OPTIM_WRAPPERS  # noqa: E402
from mmengine.registry import FUNCTIONS, Registry  # noqa: E402

# scope='mmdet': names are looked up under the default scope of every mmdet config
GATES = Registry('moe gate', scope='mmdet')
CONSTRAINTS = Registry('moe constraint', scope='mmdet')
EXPERTS = Registry('moe expert', scope='mmdet')  # of users; a class of mmdet's MODELS serves as well

REGISTERED = {
    GATES: (
        'moe_det.routing.gates:GAPLinearGate',
        'moe_det.routing.gates:ConvGAPGate',
        'moe_det.routing.gates:TwoConvGAPGate',
        'moe_det.routing.gates:NormalisedLinearGate',
        'moe_det.routing.gates:MLPGate',
        'moe_det.routing.attention:AttentiveGate',
        'moe_det.routing.distillation:DistilledGate',
        'moe_det.classification.networks:ConvNetGate',
    ),
    CONSTRAINTS: (
        'moe_det.routing.soft_constraints:ImportanceConstraint',
        'moe_det.routing.soft_constraints:KLConstraint',
        'moe_det.routing.soft_constraints:SwitchConstraint',
        'moe_det.routing.soft_constraints:EntropyConstraint',
        'moe_det.routing.soft_constraints:ZLossConstraint',
        'moe_det.routing.soft_constraints:UsageEntropyConstraint',
        'moe_det.routing.similarity:SampleSimilarityConstraint',
        'moe_det.routing.hard_constraints:RelativeImportanceConstraint',
        'moe_det.routing.hard_constraints:MeanImportanceConstraint',
        'moe_det.routing.hard_constraints:SelectionBiasConstraint',
        'moe_det.routing.cluster_mask:ClusterMask',
    ),
    MODELS: (
        'moe_det.layers.moe_conv:MoEConv2d',
        'moe_det.layers.moe_block:MoEBlock',
        'moe_det.layers.mu_moe:MuConv2d',
        'moe_det.detectors.with_experts:WithExperts',
        'moe_det.detectors.with_clusters:WithClusters',
        'moe_det.detectors.mixture_of_detectors:MixtureOfDetectors',
        'moe_det.models.moe_retina_head:MoERetinaHead',
        'moe_det.models.moe_resnet:MoEResNet',
        'moe_det.models.small_images:SmallImageResNet',
        'moe_det.models.frozen_fpn:FrozenFPN',
        'moe_det.classification.resnet_classifier:ResNetClassifier',
        'moe_det.classification.mixture:MixtureClassifier',
        'moe_det.classification.mixture_vae:MixtureVAE',
        'moe_det.classification.preprocessor:ClassificationPreprocessor',
    ),
    HOOKS: (
        'moe_det.hooks.moe_hook:MoEHook',
        'moe_det.hooks.expert_size_hook:ExpertSizeHook',
        'moe_det.hooks.consistency_hook:RoutingConsistencyHook',
        'moe_det.hooks.dense_teacher_hook:DenseTeacherHook',
        'moe_det.robustness.bad_images_hook:SkipBadImagesHook',
        'moe_det.robustness.finite_hook:FiniteHook',
        'moe_det.robustness.exact_resume_hook:ExactResumeHook',
        'moe_det.hooks.auxiliary_loss_hook:AuxiliaryLossHook',
        'moe_det.hooks.schedule_hook:MoEScheduleHook',
        'moe_det.classification.hook:ClassificationHook',
        'moe_det.classification.adversarial:AdversarialTrainingHook',
        'moe_det.classification.adversarial:AdversarialTestHook',
    ),
    DATASETS: ('moe_det.classification.dataset:ClassificationDataset',),
    DATA_SAMPLERS: ('moe_det.classification.epoch_sampler:EpochSampler',),
    FUNCTIONS: ('moe_det.classification.dataset:whole_batch',),
    METRICS: (
        'moe_det.classification.metric:ClassificationMetric',
        'moe_det.classification.mixture_vae:ReconstructionMetric',
    ),
    OPTIM_WRAPPERS: ('moe_det.running.amp:CPUAmpOptimWrapper',),
}


def register_all() -> None:
    """Imports every class of ``REGISTERED`` and puts it into its registry; calling it twice changes nothing."""
    for registry, paths in REGISTERED.items():
        for path in paths:
            module_name, class_name = path.split(':')
            cls = getattr(importlib.import_module(module_name), class_name)
            if registry.module_dict.get(class_name) is not cls:
                registry.register_module(module=cls)


def build_named(registry: Registry, cfg: dict, where: str, **arguments):
    """Builds ``cfg`` from one of this module's registries, with an error that names the config key.

    Args:
        registry: ``GATES``, ``CONSTRAINTS`` or ``EXPERTS``.
        cfg: a dict with ``type`` (a registered name or a class) and the class's own arguments.
        where: the config key that holds ``cfg``, for the message.
        **arguments: passed to the class in addition to the entries of ``cfg``.

    Raises:
        MoEConfigError: ``cfg`` is not a dict with ``type``, the name is unknown, or the class refuses its arguments.
    """
    if not isinstance(cfg, dict) or 'type' not in cfg:
        raise MoEConfigError(f"{where}: expected a dict with the key 'type', got {cfg!r}")
    settings = dict(cfg)
    name = settings.pop('type')
    cls = name if isinstance(name, type) else registry.get(name)
    if cls is None:
        raise MoEConfigError(f'{where}: {unknown_name(registry.name, name, registry.module_dict)}')
    try:
        return cls(**settings, **arguments)
    except (TypeError, ValueError) as error:
        raise MoEConfigError(f'{where}: {cls.__name__}: {error}') from error


register_all()
