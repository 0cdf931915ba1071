"""What moe_speed.py measures, section by section."""

from __future__ import annotations

import torch

from .detector_sections import DetectorSections
from .layer_sections import LayerSections
from .token_sections import TokenSections


class Measurement(DetectorSections, LayerSections, TokenSections):
    """Runs sections and keeps what they find."""

    def run(self, section: str) -> None:
        """Measures one of moe_speed.py's sections in all precisions."""
        for precision in self.plan.precisions:
            set_precision(precision)
            getattr(self, f'_{section}')(precision)

    def _memory(self, precision: str) -> None:
        self._layers_memory(precision)
        self._detectors_memory(precision)


def set_precision(precision: str) -> None:
    """Allows TF32 for ``'tf32'`` and, beside autocast, for ``'bf16'``; plain fp32 otherwise. Never searches kernels."""
    allowed = precision != 'fp32'
    torch.backends.cuda.matmul.allow_tf32 = allowed
    torch.backends.cudnn.allow_tf32 = allowed
    # a search would time kernels in the middle of a round, for every new number of rows again
    torch.backends.cudnn.benchmark = False
