# ResNet-18 with narrow experts in its last stage: E=4, k=2, GAP-FC gate (arXiv 2204.10598). The constraint is the entry
# config's. Variants of the paper, each with --cfg-options:
#   ten experts             model.backbone.moe.num_experts=10
#   another stage           model.backbone.moe.stages="[3]"
#   outer skip (residual)   model.backbone.moe.residual=True
#   four active experts     model.backbone.moe.top_k=4 (with ten experts)
#   other K at test time    model.test_top_k=1
_base_ = './resnet18.py'

model = dict(
    backbone=dict(
        type='MoEResNet',
        small_images=True,
        moe=dict(
            stages=(4,),  # 1 to 4, one or several
            num_experts=4,
            top_k=2,
            residual=False,  # an outer skip around the experts
            gate=dict(type='GAPLinearGate'),  # GAP-FC
        ),
    ),
)
