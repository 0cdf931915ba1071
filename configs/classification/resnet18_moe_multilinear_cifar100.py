# CIFAR-100, ResNet-18 whose last linear layer is mixed for every image from 32 factorised experts (muMoE, arXiv
# 2402.12550, which replaces the last layer of CLIP), with as many parameters as it had. Data and schedule are those of
# the other ResNet-18 with experts.
_base_ = ['./_base_/cifar100_paper_a.py', './_base_/resnet18.py', './_base_/schedule_paper_a.py']

model = dict(
    type='WithExperts',
    detector='ResNetClassifier',
    num_classes=100,
    data_preprocessor=_base_.normalisation,
    experts=[dict(modules='fc', type='MuLinear', num_experts=32)],
)
