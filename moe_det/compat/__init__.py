"""What the distributions of MMDetection lack or do differently: presence, operators, checkpoints, annotation files."""

from .stack import prepare_stack

__all__ = ['prepare_stack']
