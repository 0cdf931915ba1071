"""From routing to honest statistics: do experts specialise in object size, beyond the feature level?"""

from .information import conditional_mutual_information, mutual_information
from .meter import SpecializationMeter
from .result import RelativeSize, SpecializationResult, adjust_for_layers, holm
from .seeds import Agreement, agreement, align_experts, size_preference
from .sizes import relative_sizes, size_bins
from .specialization import measure_specialization

__all__ = [
    'Agreement',
    'RelativeSize',
    'SpecializationMeter',
    'SpecializationResult',
    'adjust_for_layers',
    'agreement',
    'align_experts',
    'conditional_mutual_information',
    'holm',
    'measure_specialization',
    'mutual_information',
    'relative_sizes',
    'size_bins',
    'size_preference',
]
