# CIFAR-10, one expert without a gate.
# Published: error 0.368.
_base_ = './_base_/cifar10.py'
model = dict(moe=dict(num_experts=1, top_k=1))
