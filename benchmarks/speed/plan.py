"""What moe_speed.py measures, and how often."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from .layers import LayerShape
from .token_sections import TokenShape


@dataclass(frozen=True)
class Plan:
    """What to measure and how often.

    Attributes:
        device: ``'cpu'`` or ``'cuda'``.
        precisions: of ``'fp32'``, ``'tf32'`` and ``'bf16'``.
        batches: B of the whole detector.
        size: height and width of its images.
        larger: further batch sizes and image sizes of it, for its times alone.
        detector_rounds: rounds of the whole detector.
        layer: size of the layer alone.
        experts: E of the layer alone.
        tokens: size of the layer of tokens.
        rounds: rounds of the layer.
        profile_rounds: rounds of the whole detector under the profiler.
        warm_up: rounds before the first that counts.
    """

    device: str
    precisions: tuple[str, ...]
    batches: tuple[int, ...]
    size: tuple[int, int]
    detector_rounds: int
    layer: LayerShape
    experts: tuple[int, ...] = (2, 4, 8, 16, 32)
    tokens: TokenShape = TokenShape()
    rounds: int = 30
    profile_rounds: int = 10
    warm_up: int = 3
    larger: tuple[tuple[int, tuple[int, int]], ...] = ()

    @property
    def detector_cases(self) -> list[tuple[int, tuple[int, int]]]:
        """Batch sizes and image sizes at which the whole detector is timed."""
        return [*((images, self.size) for images in self.batches), *self.larger]

    @property
    def few_and_many(self) -> tuple[int, int] | None:
        """E = 4 and the largest E, between which nothing should change with four experts in use."""
        return (4, max(self.experts)) if 4 in self.experts and max(self.experts) > 4 else None


def quick_or_full(device: str, quick: bool) -> Iterator[tuple[str, object]]:
    """Default values of a :class:`Plan`."""
    cuda = device.startswith('cuda')
    yield 'precisions', ('tf32', 'bf16') if cuda else ('fp32',)
    if quick:
        yield 'batches', (1, 16) if cuda else (1,)
        yield 'size', (800, 1344) if cuda else (256, 256)
        yield 'experts', (4, 32)
        yield 'layer', LayerShape(16, 256, 25, 42) if cuda else LayerShape(8, 64, 20, 20)
        yield 'tokens', TokenShape() if cuda else TokenShape(tokens=2000)
        yield 'rounds', 5
        yield 'profile_rounds', 2
        yield 'detector_rounds', 5 if cuda else 3
        yield 'warm_up', 2 if cuda else 1
    else:
        yield 'batches', (1, 2, 8, 16) if cuda else (1, 2)
        yield 'size', (800, 1344) if cuda else (320, 320)
        yield 'larger', () if cuda else ((1, (640, 640)),)
        yield 'experts', (2, 4, 8, 16, 32)
        yield 'layer', LayerShape(16, 256, 50, 84) if cuda else LayerShape()
        yield 'rounds', 30
        yield 'detector_rounds', 30
        yield 'warm_up', 10 if cuda else 3
