"""What was expected of benchmarks/neighbours.py, written down before its runs; those of experts that pay were known."""

EXPECTED = [
    'No neighbour is better than the control by a point and two standard errors, and none reaches the mixed kernels of '
    '8 copies: capacity binds in the head, and most of these mechanisms add hardly any for one image.',
    'muMoE has the parameters of what it replaces and starts from scratch: within 1 point of the control, CP and '
    'tensor ring within half a point of each other. Its coefficients follow what a location shows, so exchanging them '
    'between images loses less than 2 points, as most locations show background.',
    'Fine-grained and shared experts start the head from scratch with very few channels each: more than 3 points below '
    'the control, the lowest row of the table.',
    'Expert choice: within 0.5 of the control. The shared expert does the work, and no expert is idle by construction.',
    'Clusters: the four kinds of scenes have backgrounds of their own, so that the clusters are nearly the kinds, and '
    'no gate can collapse them. Experts that differ, but AP below +0.5, as the backbone stays as it is.',
    'Two of four towers without distillation gain up to 1 point, at more than equal cost.',
    'Mutual distillation: AP within 0.5 of weight 0 for 0.01 and 0.1, lower for 1. As the weight grows experts alone '
    'come nearer to the mixture, and the loss under the swap shrinks: experts improve on average by becoming equal, '
    'which is not specialisation.',
    'The dense teacher gains up to 1 point, most of it from the averaged weights.',
    'Consistent gates: the AP of the same shards without within 0.3, more decisions that stay under corruptions, and '
    'hardly another drop of AP.',
    'PGD with 4/255 leaves less than a tenth of the AP of every row, no mixture withstands more than 2 points more '
    'than the control. Corruptions of severity 3 take a third to half.',
    'A training step of a mixture takes 1.1 to 1.5 times that of dense on a CPU at this size; muMoE at every location '
    'more, the dense teacher about twice.',
]
