# Fashion-MNIST, one expert without a gate.
# Published: error 0.132.
_base_ = './_base_/fashion_mnist.py'
model = dict(moe=dict(num_experts=1, top_k=1))
