# CIFAR-10 and the networks that arXiv 2302.14703 uses on it: five experts, and gates that are larger than they are.
_base_ = './paper_b.py'

# the image folder is read where torchvision's files are missing; it may be a tar file or a folder
image_folder = 'cifar10/cifar10-jpg.tar.gz'
train_dataloader = dict(batch_size=128, dataset=dict(name='CIFAR10', image_folder=image_folder))
val_dataloader = dict(batch_size=1000, dataset=dict(name='CIFAR10', image_folder=image_folder))
test_dataloader = val_dataloader

hidden_channels = 32
query = dict(type='ConvNetGate', image_size=32, channels=(64, 128, 256, 256), padding=1, hidden=(512,))
plain_gate = dict(type='ConvNetGate', image_size=32, channels=(64, 128, 256, 256), padding=1, hidden=(512, 32))
model = dict(
    num_classes=10,
    data_preprocessor=dict(
        type='ClassificationPreprocessor', mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616)
    ),
    expert=dict(in_channels=3, image_size=32, channels=(3, 6, 12, 12), norm=(1, 3), padding=1, hidden=(64, 32)),
    moe=dict(gate=plain_gate),
)
