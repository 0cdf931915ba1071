# CIFAR-100 and the networks that arXiv 2302.14703 uses on it: twenty experts, and gates that are larger than they are.
_base_ = './paper_b.py'

train_dataloader = dict(batch_size=256, dataset=dict(name='CIFAR100'))
val_dataloader = dict(batch_size=1000, dataset=dict(name='CIFAR100'))
test_dataloader = val_dataloader

val_evaluator = dict(top_errors=(5,))
test_evaluator = dict(top_errors=(5,))
train_cfg = dict(max_epochs=40)
hidden_channels = 256
query = dict(type='ConvNetGate', image_size=32, channels=(64, 128, 256, 512), padding=1, hidden=(1024,))
plain_gate = dict(type='ConvNetGate', image_size=32, channels=(64, 128, 256, 512), padding=1, hidden=(1024, 256))
model = dict(
    num_classes=100,
    data_preprocessor=dict(
        type='ClassificationPreprocessor', mean=(0.5071, 0.4865, 0.4409), std=(0.2009, 0.1984, 0.2023)
    ),
    expert=dict(in_channels=3, image_size=32, channels=(16, 32, 64, 128), padding=1, hidden=(1024, 256)),
    moe=dict(num_experts=20, top_k=20, gate=plain_gate),
)
