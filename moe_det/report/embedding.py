"""Pictures inside the page, as data URLs of modest size."""

from __future__ import annotations

import base64
import io

from PIL import Image

from ..figures.pictures import IMAGE_SIDE, Pictures

_MODEST_BYTES = 60_000  # larger files are re-encoded
_BUDGET_BYTES = 16_000_000  # of all pictures; browsers on phones still open such a page


class Embedder:
    """Turns pictures that the results name into data URLs.

    Args:
        pictures: where the files are.
        budget: bytes for all pictures together; what comes later is left out.
    """

    def __init__(self, pictures: Pictures, budget: int = _BUDGET_BYTES) -> None:
        self._pictures = pictures
        self._budget = budget
        self._made: dict[str, str] = {}
        self.left_out = 0

    def source(self, relative: str | None) -> str | None:
        """A data URL, or None if there is no such picture or no room for it."""
        if not relative:
            return None
        if relative not in self._made:
            encoded = self._encode(relative)
            if encoded is None:
                return None
            self._made[relative] = 'data:image/jpeg;base64,' + base64.b64encode(encoded).decode('ascii')
        source = self._made[relative]
        if len(source) > self._budget:
            self.left_out += 1
            return None
        self._budget -= len(source)
        return source

    def _encode(self, relative: str) -> bytes | None:
        path, picture = self._pictures.path(relative), self._pictures.open(relative)
        if path is None or picture is None:
            return None
        is_jpeg = path.suffix.lower() in ('.jpg', '.jpeg')
        if is_jpeg and max(picture.size) <= IMAGE_SIDE and path.stat().st_size <= _MODEST_BYTES:
            return path.read_bytes()
        picture.thumbnail((IMAGE_SIDE, IMAGE_SIDE), Image.Resampling.LANCZOS)
        buffer = io.BytesIO()
        picture.save(buffer, format='JPEG', quality=80)
        return buffer.getvalue()
