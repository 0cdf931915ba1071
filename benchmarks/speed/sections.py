"""What moe_speed.py measures, section by section."""

from __future__ import annotations

from .detector_sections import DetectorSections
from .layer_sections import LayerSections
from .measurement import set_precision


class Measurement(DetectorSections, LayerSections):
    """Runs sections and keeps what they find."""

    def run(self, section: str) -> None:
        """Measures one of moe_speed.py's sections in all precisions."""
        for precision in self.plan.precisions:
            set_precision(precision)
            getattr(self, f'_{section}')(precision)

    def _memory(self, precision: str) -> None:
        self._layers_memory(precision)
        self._detectors_memory(precision)
