# CIFAR-10, ResNet-18 in which experts choose patches (pMoE, arXiv 2306.04073): the second block's 3x3 convolution of
# stage 3, on maps of 8x8 pixels as in the paper, where each of 4 experts takes a quarter of the map. Cells of 2x2
# pixels, the sum of the experts' outputs instead of their concatenation and the shared expert are our own choice, data
# and schedule are those of the other ResNet-18 with experts.
_base_ = ['./_base_/cifar10_paper_a.py', './_base_/resnet18_moe.py', './_base_/schedule_paper_a.py']

model = dict(
    num_classes=10,
    data_preprocessor=_base_.normalisation,
    backbone=dict(
        moe=dict(
            stages=(), convs=(3,), unit='patch', grid=4, num_experts=4, top_k=4, rows_per_expert=4, shared_expert=True
        )
    ),
)
