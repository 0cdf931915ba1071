"""The terms of the report, each defined once."""

from __future__ import annotations

DEFINITIONS = {
    'size': (
        "small, medium or large by the area of the annotation in original pixels (the mask's where there is one), with "
        'crowds left out. An area on a limit counts as the smaller size here; in the average precisions it counts as '
        'both, as in pycocotools.'
    ),
    'detection unit': (
        "an object that COCO's rules match to a detection at IoU 0.5 (score order, same class, at most 100 detections "
        'per image), with the routing row of that detection: its image and the pyramid level, or patch of it, whose '
        'anchor produced it. Its expert is the one with the largest weight.'
    ),
    'training unit': (
        "an object, found or not, with the expert weights averaged over the anchors that the head's own assigner gives "
        'it. An object with anchors on several levels counts on each by its share of anchors.'
    ),
    'image unit': (
        "Spearman's rank correlation over images between an expert's mean weight at a level and the mean log area of "
        "the image's objects."
    ),
    'I(E;S)': (
        'mutual information in bits between expert and size. Level and size nearly coincide, so a gate that merely '
        'recognises its pyramid level has a large one.'
    ),
    'I(E;S | level)': (
        'mutual information in bits between expert and size inside a level, averaged over levels: what the choice of '
        'expert tells about size beyond the level. The mean of the permutations is subtracted as bias, so it may be '
        'slightly negative.'
    ),
    'V given level': (
        "Cramer's V between expert and size inside a level, corrected for bias: 0 none, 1 each expert has its size. "
        'Below 0.1 an effect is too small to speak of.'
    ),
    'p-value': (
        'share of permutations of routing rows between images within a level whose I(E;S | level) is at least the '
        'observed one. Objects of one image share rows, so objects are not permuted one by one; a chi-square test over '
        'objects would call noise significant. Adjusted over the layers by Holm.'
    ),
    'interval': '95 %, from resampling images with replacement.',
    'lift': 'P(expert | size) / P(expert): 1 if the expert serves this size as often as it serves anything.',
    'forced': 'average precision when the layer gives every row to one expert, other layers as they are.',
    'knocked out': 'average precision when no row may choose the expert; the next best takes its place.',
    'agreement': (
        'cosine between what experts are used for beyond their level and what they are better at when forced, from -1 '
        'to 1; being better at every size does not count.'
    ),
    'size-specialised': (
        'Holm-adjusted p of at most 0.01 given the level, V given level of at least 0.1, and positive agreement.'
    ),
    'level-specialised': 'the choice of expert depends on the level, and the level explains what it tells about size.',
    'not specialised': 'neither.',
    'undetermined': 'too few images or objects to tell.',
    'load, importance, living': (
        'load: rows that chose an expert over the fair share; importance: its part of all weights; living: more than '
        '1 % of the weights.'
    ),
    'H_s, H_u': (
        "entropy in bits of a row's gate probabilities, averaged over rows, and of the mean probabilities; sharp "
        'decisions have a low H_s, experts used alike an H_u near log2(E).'
    ),
}
