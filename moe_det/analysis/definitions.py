"""The terms of the report, each defined once."""

from __future__ import annotations

from ..routing.metrics import LIVING_SHARE
from .random_gates import BEYOND
from .result import ALPHA, LEVEL, MIN_CRAMERS_V, NOT, NOT_BY_SIZE, SCALE, SIZE, SORTED, UNDETERMINED

MISSING = '–'  # where there is no value
MINUS = '−'

DEFINITIONS = {
    'size': (
        "small, medium or large (COCO's bins) by the area of the annotation in original pixels (the mask's if there "
        'is one), without crowds. An area on a limit counts as the smaller size here; in the average precisions it '
        'counts as both, as in pycocotools.'
    ),
    'relative size': (
        'lower, middle or upper third by area among the objects of the same pyramid level. The level says nothing '
        "about it, while it nearly determines COCO's bins."
    ),
    'level of an object': (
        'that of the detection that found it (detection unit), or those of the anchors assigned to it (training '
        'unit). It exists even where a layer decides once for all levels.'
    ),
    'object query': (
        "in detectors of DETR's family a query of the decoder makes each detection. It is a routing row of its own "
        'and has no level, so "given the level" is then given the layer: all queries count as one level. In the swap '
        'test a query takes the decision of the query of the same number in another image.'
    ),
    'detection unit': (
        "an object that COCO's rules match to a detection at IoU 0.5 (score order, same class, at most 100 "
        'detections per image), with the routing row of that detection: its image and the pyramid level, or patch of '
        'it, whose anchor produced it. Its expert is the one with the largest weight.'
    ),
    'training unit': (
        "an object, detected or not, with the expert weights averaged over the anchors that the head's own assigner "
        'assigns to it. An object with anchors on several levels counts on each by its share of anchors. With object '
        'queries: with the expert weights of the query that the matcher assigns to it at the last decoder layer.'
    ),
    'image unit': (
        "Spearman's rank correlation over images between an expert's mean weight at a level and the mean log area of "
        "the image's objects."
    ),
    'I(E;relative size | level)': (
        'mutual information in bits between expert and relative size inside a level, averaged over objects: how far '
        'the gate sorts by size beyond the level. The mean of the permutations is subtracted as bias, so it may be '
        'slightly negative.'
    ),
    'I(E;S | level)': "the same for COCO's bins.",
    'ceiling': (
        'entropy of the size given the level, H(size | level): the information if the expert determined the size '
        'exactly.'
    ),
    'I(E;S)': (
        "mutual information in bits between expert and COCO's bins regardless of the level. Level and size nearly "
        'coincide, so it is large for a gate that only recognises its pyramid level; it is not comparable with '
        'information given the level.'
    ),
    'V': (
        "Cramér's V between expert and size (inside a level, where information is given the level), corrected for "
        f'bias: 0 none, 1 each expert has its size. Below {MIN_CRAMERS_V} an effect is too small to matter.'
    ),
    'p-value': (
        'probability of at least the observed information if routing did not depend on size: from permutations that '
        'exchange the routing rows of whole images within a level, among images with similar numbers of objects. '
        'Objects of one image share rows, so objects are not permuted one by one. Holm-adjusted over the layers '
        'where marked.'
    ),
    'interval': '95 %, from resampling images (or groups of images, if given) with replacement.',
    'lift': 'P(expert | size) / P(expert): 1 if the expert serves this size as often as it serves anything.',
    'random gates': (
        'gates with random weights on the features that the trained gate sees, with the same utilisation of each '
        'expert. Features carry information about scale, so random gates sort by size too. The trained gate sorts '
        f'more than they do if it lies above {100 * BEYOND:g} % of them (training unit, top expert; bits are not '
        'corrected for bias here, since it is equal for all of these gates).'
    ),
    'swap test': (
        "every routing row takes the decision of another image's row at the same level, of an image with a similar "
        'number of objects; several draws are averaged. The loss of average precision is the value of the choice of '
        'expert beyond the level. The swap costs if AP, AP_S, AP_M or AP_L falls by a tenth of a point or more with '
        f'a one-sided p of at most {ALPHA} (Holm-adjusted over these four), usually with an interval below zero. If '
        'none falls and one is undefined, this is undecided, and so is the verdict.'
    ),
    'AP of a third': 'average precision of the objects in one third of relative size, others ignored.',
    'routes between levels': (
        "each image's decisions go to other levels of the same image: the value of the choice by level."
    ),
    'one fixed route': (
        'every row of the layer takes the same experts, those with the lowest loss on average: the value of choosing '
        'at all.'
    ),
    'best route per image': (
        'each image takes the route with the lowest loss against its ground truth, among the fixed ones and its own: '
        'an upper bound on the gain of a perfect gate per image, out of reach for a detector.'
    ),
    'shard, copy': (
        'with shards a row runs one copy of every shard. Each choice counts as an equal part; information, lift and '
        'random gates are means over the shards, and H_s and H_u those of one choice. Forcing or knocking out a copy '
        'affects its own shard.'
    ),
    'forced': 'average precision when the layer gives every row to one expert, other layers unchanged.',
    'knocked out': 'average precision when no row may choose the expert; the next best takes its place.',
    'agreement': (
        'cosine between what experts are used for beyond their level and what they are better at when forced, from '
        '-1 to 1; being better at every size does not count. It does not affect the verdict.'
    ),
    'sorts beyond the level': (
        f'I(E;relative size | level) has a Holm-adjusted p of at most {ALPHA} and a V of at least {MIN_CRAMERS_V}, in '
        'the detection unit and in the training unit.'
    ),
    SIZE: 'sorts beyond the level, more than random gates do, and the swap costs average precision.',
    SORTED: (
        'sorts beyond the level, but it was not shown that the choice matters for the detector, or that random gates '
        'sort less.'
    ),
    NOT_BY_SIZE: (
        'the swap costs average precision, but sorting beyond the level, and more than random gates do, was not shown.'
    ),
    SCALE: (
        'one decision per image, and images of different scale go to different experts (I(E;S) with p of at most '
        f'{ALPHA} and V of at least {MIN_CRAMERS_V}); nothing was shown beyond the level.'
    ),
    LEVEL: 'the choice of expert depends on the level; nothing was shown beyond it.',
    NOT: 'none of these was shown.',
    UNDETERMINED: 'the data are insufficient; the reason is given.',
    'load, importance, living': (
        'load: rows that chose an expert, relative to the fair share; importance: its share of all weights; living: '
        f'more than {100 * LIVING_SHARE:g} % of the weights.'
    ),
    'H_s, H_u': (
        "entropy in bits of a row's gate probabilities, averaged over rows, and of the mean probabilities; sharp "
        'decisions have a low H_s, evenly used experts an H_u near log2(E).'
    ),
}
