"""How a detector with experts starts from scratch."""

from __future__ import annotations

import contextlib
from typing import Any

from torch import nn

from ..layers.moe_conv import MoEConv2d
from ..layers.moe_ffn import MoEFFN
from ..layers.multilinear import MultilinearExperts
from ..routing.experts import ExpertGroup
from ..routing.kept_weights import OwnStart
from ..routing.router import Router


class InitWeights:
    """Takes the place of a detector's ``init_weights``, and initialises experts as that initialises what they replace.

    Detectors draw weights in many ways: by a config, all matrices of a part, all convolutions, one named layer. None
    of them knows experts. Here every expert of a layer is drawn as the dense layer would be; gates and learned noise
    and the factors of multilinear experts start as their classes say; a common part and the differences from it are
    made of what was drawn.

    Args:
        detector: any module with ``init_weights``.
    """

    def __init__(self, detector: nn.Module) -> None:
        self.detector: Any = detector  # what has init_weights

    def __call__(self) -> None:
        with contextlib.ExitStack() as contexts:
            for module in list(self.detector.modules()):  # a layer comes before its experts, as its context must
                if isinstance(module, (MoEConv2d, MoEFFN, ExpertGroup)):
                    contexts.enter_context(module.starting())
                elif isinstance(module, (Router, MultilinearExperts)):
                    contexts.enter_context(OwnStart(module))
            type(self.detector).init_weights(self.detector)
