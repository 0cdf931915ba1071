# MNIST, one expert without a gate.
# Published: error 0.096.
_base_ = './_base_/mnist.py'
model = dict(moe=dict(num_experts=1, top_k=1))
