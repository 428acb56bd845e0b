"""Whether decoded pixels fit into memory, asked before they are decoded: a process that takes too much is killed without a word."""

from __future__ import annotations

from pathlib import Path

__all__ = ["available_bytes", "check_fits"]

_ALWAYS_FITS = 256 << 20
_GIB = 1 << 30


def available_bytes() -> int:
    """Memory this process can take: what the machine has free, its control group leaves, and its own limit allows."""
    import psutil

    limits = [psutil.virtual_memory().available]
    group = Path("/sys/fs/cgroup")
    try:
        name = Path("/proc/self/cgroup").read_text(encoding="utf-8").partition("0::")[2].splitlines()[0].lstrip("/")
        for folder in (group, group / name):
            limit = (folder / "memory.max").read_text(encoding="utf-8").strip()
            if limit != "max":
                limits.append(int(limit) - int((folder / "memory.current").read_text(encoding="utf-8")))
    except (OSError, IndexError, ValueError):
        pass  # no control groups of version 2
    try:
        import resource
    except ImportError:  # Windows
        return max(0, min(limits))
    most = resource.getrlimit(resource.RLIMIT_AS)[0]
    if most != resource.RLIM_INFINITY:
        limits.append(most - psutil.Process().memory_info().vms)
    return max(0, min(limits))


def check_fits(n_bytes: int, path: Path, width: int, height: int) -> None:
    """Return if ``n_bytes`` for pixels of an image can be taken.

    Raises:
        MemoryError: they cannot; the message gives the command that makes a tiled TIFF of the image, of which only the tiles
            under a crop are decoded.
    """
    if n_bytes <= _ALWAYS_FITS:
        return
    free = available_bytes()
    if n_bytes > free:
        tiled = path.with_name(f"{path.name.split('.')[0]}_tiled.tif")
        raise MemoryError(
            f"image {path} has {width} x {height} px and must be decoded whole, which takes {n_bytes / _GIB:.1f} GiB; "
            f"{free / _GIB:.1f} GiB are free. Convert it once to a tiled TIFF, which is read in parts: "
            f'vips copy "{path}" "{tiled}[tile,pyramid,compression=jpeg,Q=90,bigtiff]"'
        )
