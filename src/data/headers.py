"""What the header of an audio file promises, held against what the file has."""

import os
from pathlib import Path

UNKNOWN_LENGTH = 0xFFFFFFFF
OGG_PAGE_BYTES = 27 + 255 + 255 * 255  # the longest there is
OGG_LAST_PAGE = 4
XING_WITHIN_BYTES = 64  # of the first MPEG frame


def truncation(path: Path) -> str:
    """Return what a file lacks of what its header promises, an empty string if nothing.

    WAV, AU and MP3 with a Xing header state a length in bytes, Ogg marks its last page. FLAC is
    checked in decoding; an MP3 without a Xing header promises nothing.
    """
    there = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(12)
        if head[:4] == b"OggS":
            return "" if _has_last_page(file, there) else f"no last page in {there} bytes"
        promised = _promised_bytes(head) or _mp3_bytes(file)
    return f"{promised} bytes promised, {there} there" if promised > there else ""


def _promised_bytes(head: bytes) -> int:
    """Return the length in bytes that a WAV or AU header gives its file, 0 if it gives none."""
    start, length = 0, UNKNOWN_LENGTH
    if head[:4] == b"RIFF" and head[8:12] == b"WAVE":
        start, length = 8, int.from_bytes(head[4:8], "little")
    elif head[:4] == b".snd":
        start, length = (int.from_bytes(head[i : i + 4], "big") for i in (4, 8))
    return 0 if length == UNKNOWN_LENGTH else start + length


def _mp3_bytes(file) -> int:
    """Return the length in bytes that the Xing header of an MP3 gives its file, or 0.

    Source: the layout of Xing and LAME headers, gabriel.mp3-tech.org/mp3infotag.html.
    """
    file.seek(0)
    start, head = 0, file.read(10)
    if head[:3] == b"ID3" and len(head) == 10:
        start = 10 + sum(
            byte << shift for byte, shift in zip(head[6:], (21, 14, 7, 0), strict=True)
        )
    file.seek(start)
    frame = file.read(XING_WITHIN_BYTES)
    at = max(frame.find(b"Xing"), frame.find(b"Info"))
    if frame[:1] != b"\xff" or at < 0:
        return 0
    flags, *numbers = (int.from_bytes(frame[at + i : at + i + 4], "big") for i in (4, 8, 12))
    has_frames, has_bytes = flags & 1, flags & 2
    return start + numbers[bool(has_frames)] if has_bytes else 0


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
