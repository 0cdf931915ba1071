# Fragment for a config of your own: soft constraint.
#   _base_ = ['my_retinanet.py', 'PATH/configs/_base_/moe/soft.py']
#   model = dict(bbox_head=dict(type='MoERetinaHead', moe=_base_.moe))
_base_ = './runtime.py'
moe = dict(num_experts=4, top_k=2, constraint=dict(type='KLConstraint', weight=0.25))
