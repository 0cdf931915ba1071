"""Turns checkpoints into others: dense to experts and back, fewer experts, ONNX."""
