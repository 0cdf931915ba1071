# Fashion-MNIST, 5 experts, attentive gate (arXiv 2302.14703).
# Published: error 0.098, I(E;Y) 2.071, H_s 0.114, H_u 2.249.
_base_ = './fashion_mnist_original.py'
model = dict(
    moe=dict(gate=dict(_delete_=True, type='AttentiveGate', hidden_channels=_base_.hidden_channels, query=_base_.query))
)
