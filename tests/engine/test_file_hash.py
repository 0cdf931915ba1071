"""What tells one checkpoint from another when results are kept."""

from __future__ import annotations

import hashlib

from moe_det.engine.checkpoints import file_sha256


def test_a_file_is_told_by_its_bytes(tmp_path):
    path = tmp_path / 'a.pth'
    path.write_bytes(b'x' * (3 << 20) + b'end')
    assert file_sha256(str(path)) == hashlib.sha256(path.read_bytes()).hexdigest()


def test_two_urls_are_two_checkpoints():
    """Findings that were kept for one URL must not be taken for another's."""
    assert file_sha256('https://host/a.pth') != file_sha256('https://host/b.pth')
