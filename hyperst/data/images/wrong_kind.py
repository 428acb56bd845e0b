"""What a file holds whose name says something else."""

from __future__ import annotations

from pathlib import Path

__all__ = ["actual_kind"]

_STARTS = (
    (b"\x89PNG", "a PNG image", ".png"),
    (b"\xff\xd8\xff", "a JPEG image", ".jpg"),
    (b"BM", "a BMP image", ".bmp"),
    (b"II*\0", "a TIFF", ".tif"),
    (b"MM\0*", "a TIFF", ".tif"),
    (b"II+\0", "a TIFF", ".tif"),
    (b"MM\0+", "a TIFF", ".tif"),
    (b"\0\0\0\x0cjP  ", "a JPEG 2000 image", ".jp2"),
    (b"ZISRAWFILE", "a Zeiss slide", ".czi"),
    (b"\x89HDF", "HDF5 data", ".h5"),
    (b"\x1f\x8b", "gzip-compressed data", ".gz"),
    (b"PK\x03\x04", "a ZIP archive", ".zip"),
)
_BYTES_READ = 16


def actual_kind(path: Path) -> str:
    """Words for what the first bytes of a file show, when that is not what its name says; else "".

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder) / "slide.tif"
    ...     _ = path.write_bytes(b"\\x89PNG and so on")
    ...     actual_kind(path)
    'it holds a PNG image: name it slide.png'
    """
    with path.open("rb") as file:
        start = file.read(_BYTES_READ)
    if not start:
        return "it is empty: copy or export it again"
    if start.startswith(b"RIFF") and start[8:12] == b"WEBP":
        return _named(path, "a WebP image", ".webp")
    for bytes_, kind, suffix in _STARTS:
        if start.startswith(bytes_):
            return _named(path, kind, suffix)
    return ""


def _named(path: Path, kind: str, suffix: str) -> str:
    same = {".jpeg": ".jpg", ".tiff": ".tif", ".btf": ".tif", ".qptiff": ".tif"}
    if same.get(path.suffix.lower(), path.suffix.lower()) == suffix:
        return ""
    return f"it holds {kind}: name it {path.with_suffix(suffix).name}"
