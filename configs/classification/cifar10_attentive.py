# CIFAR-10, 5 experts, attentive gate (arXiv 2302.14703).
# Published: error 0.282, I(E;Y) 2.076, H_s 0.178, H_u 2.231.
_base_ = './cifar10_original.py'
model = dict(
    moe=dict(gate=dict(_delete_=True, type='AttentiveGate', hidden_channels=_base_.hidden_channels, query=_base_.query))
)
