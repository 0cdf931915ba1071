# Fashion-MNIST and the networks that arXiv 2302.14703 uses on it: five experts, and larger gates.
_base_ = './paper_b.py'

train_dataloader = dict(batch_size=512, dataset=dict(name='FashionMNIST'))
val_dataloader = dict(batch_size=2000, dataset=dict(name='FashionMNIST'))
test_dataloader = val_dataloader

hidden_channels = 32
query = dict(type='ConvNetGate', image_size=28, channels=(8,), norm=(0,), hidden=(512,))
plain_gate = dict(type='ConvNetGate', image_size=28, channels=(8,), norm=(0,), hidden=(512, 32))
model = dict(
    num_classes=10,
    data_preprocessor=dict(type='ClassificationPreprocessor', mean=(0.2860,), std=(0.3530,)),
    expert=dict(in_channels=1, image_size=28, channels=(1,), hidden=(64, 32)),
    moe=dict(gate=plain_gate),
)
