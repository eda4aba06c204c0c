"""Text files read whole within a size limit, and replaced in one step, each failure as one line.

A reader sees the old file or the new one, never a half: what is written goes to a sibling that is renamed.
"""

import os
import secrets
from pathlib import Path

from planner.errors import InputError

LARGEST_BYTES = 256 * 2**20


def read_text(path: Path) -> str:
    """The UTF-8 text of a file of at most 256 MiB; a byte order mark is dropped."""
    try:
        with path.open("rb") as file:
            # One byte more than allowed: devices and pipes report no size beforehand.
            content = file.read(min(LARGEST_BYTES, path.stat().st_size or LARGEST_BYTES) + 1)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {(error.strerror or str(error)).lower()}") from error
    if len(content) > LARGEST_BYTES:
        raise InputError(f"{path}: is larger than {LARGEST_BYTES >> 20} MiB, the most a document may be")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is not UTF-8 text: byte {error.start} is 0x{content[error.start]:02x}") from error


def write_text(text: str, path: Path) -> None:
    """Write a text file whole, with line feeds."""
    write_bytes(text.encode(), path)


def write_bytes(content: bytes, path: Path) -> None:
    """Write a file whole: to a sibling first, flushed to the disk, then renamed over `path`."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        try:
            with temporary.open("xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {(error.strerror or str(error)).lower()}") from error
