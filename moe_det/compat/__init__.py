"""Everything that differs between the distributions of MMDetection: presence, operators, checkpoint loading."""

from .stack import prepare_stack

__all__ = ['prepare_stack']
