"""Lets pycocotools evaluate every annotation file that mmdet can train on.

mmdet's loader takes an annotation without ``iscrowd`` as an object and any id as an id. pycocotools' evaluation reads
``annotation['iscrowd']``, and the matches of detections are annotation ids in a table of floats in which 0 stands for
"unmatched": an object with the id 0 can never be found, and a text is not a number. Exporters write such files.
"""

from __future__ import annotations

import functools


def complete_coco_files() -> None:
    """Makes pycocotools, whose reader mmdet's is, complete the annotations it reads; twice is once."""
    from pycocotools.coco import COCO

    read = COCO.createIndex
    if hasattr(read, '__wrapped__'):
        return

    @functools.wraps(read)
    def create_index(self) -> None:
        complete_annotations(self.dataset.get('annotations'))
        read(self)

    COCO.createIndex = create_index


def complete_annotations(annotations: object) -> None:
    """Fills in what the evaluation needs, in place: ``iscrowd`` where there is none, and ids above 0.

    Ids are renumbered all together, in the order of the file, if one of them is not an integer above 0. Ids
    that are used twice stay: mmdet refuses them.

    Args:
        annotations: the file's list; anything else is left alone, as are entries that are not objects.
    """
    if not isinstance(annotations, list) or not all(isinstance(annotation, dict) for annotation in annotations):
        return
    for annotation in annotations:
        if annotation.get('iscrowd') is None:
            annotation['iscrowd'] = 0
    ids = [annotation.get('id') for annotation in annotations]
    if all(is_evaluable_id(ident) for ident in ids) or len({repr(ident) for ident in ids}) < len(ids):
        return
    for number, annotation in enumerate(annotations, start=1):
        annotation['id'] = number


def is_evaluable_id(ident: object) -> bool:
    """Tells whether a match with the annotation of this id counts in pycocotools' table of floats."""
    return type(ident) is int and 0 < ident < 2**63
