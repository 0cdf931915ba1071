"""What the bytes of an image file tell without decoding it."""

from __future__ import annotations

import io
import warnings

# how each format's files end; cameras and editors append some bytes of their own
_ENDS = {b'\xff\xd8\xff': b'\xff\xd9', b'\x89PNG\r\n\x1a\n': b'IEND'}
TAIL = 4096


def may_be_truncated(start: bytes, tail: bytes) -> bool:
    """Tells whether a JPEG or PNG file lacks the mark of its end; cheap, and sure only when it says no.

    Args:
        start: the first 8 bytes of the file, or more.
        tail: its last :data:`TAIL` bytes.
    """
    return any(start.startswith(magic) and end not in tail for magic, end in _ENDS.items())


def is_truncated(content: bytes) -> bool:
    """Decodes an image that may be truncated with Pillow, which is strict about missing ends.

    OpenCV gives grey below the place where a JPEG file ends in some versions, and nothing in others.

    Args:
        content: the whole file.

    Returns:
        bool: False for an image that is whole after all, and for what Pillow does not judge.
    """
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # of large images and odd metadata
            with Image.open(io.BytesIO(content)) as image:
                image.load()
    except Image.DecompressionBombError:  # too large for Pillow's taste
        return False
    except Exception:  # Pillow has errors of many kinds
        return True
    return False
