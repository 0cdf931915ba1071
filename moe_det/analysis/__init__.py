"""From routing to honest statistics: do experts specialise in object size, beyond the feature level?"""

from .information import conditional_mutual_information, mutual_information
from .result import SpecializationResult, adjust_for_layers, holm
from .seeds import Agreement, agreement, align_experts, size_preference
from .specialization import SpecializationMeter, measure_specialization, size_bins

__all__ = [
    'Agreement',
    'SpecializationMeter',
    'SpecializationResult',
    'adjust_for_layers',
    'agreement',
    'align_experts',
    'conditional_mutual_information',
    'holm',
    'measure_specialization',
    'mutual_information',
    'size_bins',
    'size_preference',
]
