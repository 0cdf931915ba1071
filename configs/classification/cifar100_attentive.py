# CIFAR-100, 20 experts, attentive gate (arXiv 2302.14703).
# Published: error 0.461 (top-5 0.188), I(E;Y) 1.799, H_s 0.519, H_u 2.039.
_base_ = './cifar100_original.py'
model = dict(
    moe=dict(gate=dict(_delete_=True, type='AttentiveGate', hidden_channels=_base_.hidden_channels, query=_base_.query))
)
