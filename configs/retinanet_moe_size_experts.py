# Former name of retinanet_moe_scale_experts.py. Its experts differ by the scale of the image; that they differ by
# object size beyond what the pyramid level tells was not shown (docs/results/shapes.md).
_base_ = './retinanet_moe_scale_experts.py'
