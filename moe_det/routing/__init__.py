"""Routing in pure PyTorch: gates, constraints, selection, dispatch, records and metrics. Imports nothing of mm*."""

from .attention import AttentiveGate
from .class_mixtures import (
    dual_temperature_losses,
    jacobs_loss,
    mix_categorical,
    mix_top1_published,
    mixture_nll,
    next_temperature,
    sample_experts,
)
from .cluster_mask import ClusterMask
from .constraint import Constraint
from .dispatch import LevelPlan, mix_all, plan_dispatch, run_sorted, run_unsorted, touch_idle
from .distillation import DistilledGate, finish_distillation, train_gates_alone
from .entmax import entmax15
from .expert_choice import ExpertChoice
from .experts import ExpertGroup, copy_dense_to_experts, fold_common
from .gates import ConvGAPGate, GAPLinearGate, Gate, MLPGate, NormalisedLinearGate, TwoConvGAPGate
from .hard_constraints import (
    HardConstraint,
    MeanImportanceConstraint,
    RelativeImportanceConstraint,
    SelectionBiasConstraint,
)
from .metrics import Utilisation, utilisation
from .mixtures import mix_linear, mix_probabilities
from .records import RoutingRecord, RoutingRecorder, UsageRecorder
from .router import Router, find_routers
from .routing import Routing, Usage
from .rows import RowLayout, join_patches, rows_of, split_patches
from .samples import RowSamples
from .selection import select
from .similarity import SampleSimilarityConstraint
from .soft_constraints import (
    EntropyConstraint,
    ImportanceConstraint,
    KLConstraint,
    SoftConstraint,
    SwitchConstraint,
    UsageEntropyConstraint,
    ZLossConstraint,
)

__all__ = [
    'AttentiveGate',
    'ClusterMask',
    'Constraint',
    'ConvGAPGate',
    'DistilledGate',
    'EntropyConstraint',
    'ExpertChoice',
    'ExpertGroup',
    'GAPLinearGate',
    'Gate',
    'HardConstraint',
    'ImportanceConstraint',
    'KLConstraint',
    'LevelPlan',
    'MLPGate',
    'MeanImportanceConstraint',
    'NormalisedLinearGate',
    'RelativeImportanceConstraint',
    'Router',
    'Routing',
    'RoutingRecord',
    'RoutingRecorder',
    'RowLayout',
    'RowSamples',
    'SampleSimilarityConstraint',
    'SelectionBiasConstraint',
    'SoftConstraint',
    'SwitchConstraint',
    'TwoConvGAPGate',
    'Usage',
    'UsageRecorder',
    'Utilisation',
    'UsageEntropyConstraint',
    'ZLossConstraint',
    'copy_dense_to_experts',
    'dual_temperature_losses',
    'entmax15',
    'find_routers',
    'finish_distillation',
    'fold_common',
    'jacobs_loss',
    'join_patches',
    'mix_all',
    'mix_categorical',
    'mix_linear',
    'mix_probabilities',
    'mix_top1_published',
    'mixture_nll',
    'next_temperature',
    'plan_dispatch',
    'rows_of',
    'run_sorted',
    'run_unsorted',
    'sample_experts',
    'select',
    'split_patches',
    'touch_idle',
    'train_gates_alone',
    'utilisation',
]
