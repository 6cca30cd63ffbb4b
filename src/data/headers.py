"""What the header of an audio file promises, held against what the file has."""

import os
from pathlib import Path

UNKNOWN_LENGTH = 0xFFFFFFFF
OGG_PAGE_BYTES = 27 + 255 + 255 * 255  # the longest there is
OGG_LAST_PAGE = 4


def truncation(path: Path) -> str:
    """Return what a file lacks of what its header promises, an empty string if nothing.

    WAV and AU state a length in bytes, Ogg marks its last page. FLAC and MP3 state a number of
    frames, which is held against those that were decoded; an MP3 without a Xing header none.
    """
    there = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(12)
        if head[:4] == b"OggS":
            return "" if _has_last_page(file, there) else f"no last page in {there} bytes"
        promised = _promised_bytes(head)
    return f"{promised} bytes promised, {there} there" if promised > there else ""


def _promised_bytes(head: bytes) -> int:
    """Return the length in bytes that a WAV or AU header gives its file, 0 if it gives none."""
    start, length = 0, UNKNOWN_LENGTH
    if head[:4] == b"RIFF" and head[8:12] == b"WAVE":
        start, length = 8, int.from_bytes(head[4:8], "little")
    elif head[:4] == b".snd":
        start, length = (int.from_bytes(head[i : i + 4], "big") for i in (4, 8))
    return 0 if length == UNKNOWN_LENGTH else start + length


def _has_last_page(file, size: int) -> bool:
    """Tell whether an Ogg file ends with a whole page that is marked as the last."""
    file.seek(max(0, size - OGG_PAGE_BYTES), os.SEEK_SET)
    tail = file.read()
    page = tail[max(0, tail.rfind(b"OggS")) :]
    if len(page) < 27:
        return False
    lacing = page[27 : 27 + page[26]]
    whole = len(page) >= 27 + page[26] + sum(lacing)
    return whole and bool(page[5] & OGG_LAST_PAGE)
