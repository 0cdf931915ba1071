"""Routing in pure PyTorch: gates, constraints, selection, dispatch, records and metrics. Imports nothing of mm*."""

from .constraint import Constraint
from .dispatch import LevelPlan, plan_dispatch, run_dense, run_sorted, touch_idle
from .experts import ExpertGroup, copy_dense_to_experts
from .gates import ConvGAPGate, GAPLinearGate, Gate, TwoConvGAPGate
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
from .routing import Routing, Usage, select
from .rows import RowLayout, join_patches, rows_of, split_patches
from .soft_constraints import (
    EntropyConstraint,
    ImportanceConstraint,
    KLConstraint,
    SoftConstraint,
    SwitchConstraint,
    ZLossConstraint,
)

__all__ = [
    'Constraint',
    'ConvGAPGate',
    'EntropyConstraint',
    'ExpertGroup',
    'GAPLinearGate',
    'Gate',
    'HardConstraint',
    'ImportanceConstraint',
    'KLConstraint',
    'LevelPlan',
    'MeanImportanceConstraint',
    'RelativeImportanceConstraint',
    'Router',
    'Routing',
    'RoutingRecord',
    'RoutingRecorder',
    'RowLayout',
    'SelectionBiasConstraint',
    'SoftConstraint',
    'SwitchConstraint',
    'TwoConvGAPGate',
    'Usage',
    'UsageRecorder',
    'Utilisation',
    'ZLossConstraint',
    'copy_dense_to_experts',
    'find_routers',
    'join_patches',
    'mix_linear',
    'mix_probabilities',
    'plan_dispatch',
    'rows_of',
    'run_dense',
    'run_sorted',
    'select',
    'split_patches',
    'touch_idle',
    'utilisation',
]
