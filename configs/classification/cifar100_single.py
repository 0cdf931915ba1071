# CIFAR-100, one expert without a gate.
# Published: error 0.468 (top-5 0.179).
_base_ = './_base_/cifar100.py'
model = dict(moe=dict(num_experts=1, top_k=1))
