"""Reading crops from a slide: megabytes of tiles a second of one thread, against the decoder alone and loops of other libraries.

python -m benchmarks.slides              # prints the table
python -m benchmarks.slides --write      # puts it into docs/benchmarks.md, and the rows into benchmarks/results
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from PIL import Image

from benchmarks.markdown import markdown, replace_between
from benchmarks.measure import AGAIN
from benchmarks.problem import OURS
from benchmarks.results import REPOSITORY, Row, append, commit, device_name, path_for, versions
from hyperst.data import open_image
from hyperst.data.reading_order import reading_order
from hyperst.synthetic_slide import write_slide

PAGE = REPOSITORY / "docs" / "benchmarks.md"
READING = "slide reading"
DECODER, CUTTING, TIFFFILE, OPENSLIDE = "decoder alone", "cut from memory", "tifffile and zarr", "openslide"
CROP, PITCH, SIZE = 224, 200, 64
"""Pixels of full resolution: 112 and 100 um at 0.5 um/px, as of Visium; and side of the crops that a network sees."""

_READERS = {"tifffile": "tifffile", "imagecodecs": "imagecodecs", "zarr": "zarr", "openslide-python": "openslide"}


def corners_on(side: int) -> np.ndarray:
    """Upper left corners x, y (crop 2) of crops on a grid, inside a slide of ``side`` px, in rows as a loop has them."""
    steps = np.arange(0, side - CROP, PITCH)
    return np.stack([each.ravel() for each in np.meshgrid(steps, steps)], axis=1)


def _smaller(pixels: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(pixels).resize((SIZE, SIZE), Image.Resampling.BILINEAR))


def ours(path: Path, corners: np.ndarray) -> list[np.ndarray]:
    """Crops as a prediction reads them."""
    with open_image(path) as image:
        order = reading_order(image, corners + CROP / 2, [float(CROP)], SIZE)
        crops = [image.read(x, y, CROP, CROP, size=SIZE) for x, y in corners[order].tolist()]
    return [crops[place] for place in np.argsort(order)]


def from_memory(pixels: np.ndarray, corners: np.ndarray) -> list[np.ndarray]:
    """Crops of an image that has been decoded."""
    return [_smaller(pixels[y : y + CROP, x : x + CROP]) for x, y in corners.tolist()]


def with_tifffile(path: Path, corners: np.ndarray) -> list[np.ndarray]:
    """Crops through tifffile's zarr store, which decodes the tiles of each anew."""
    import zarr

    with tifffile.imread(path, aszarr=True, level=0) as store:
        pixels = zarr.open_array(store, mode="r")
        return [_smaller(np.asarray(pixels[y : y + CROP, x : x + CROP])) for x, y in corners.tolist()]


def with_openslide(path: Path, corners: np.ndarray) -> list[np.ndarray]:
    """Crops through openslide with its own cache."""
    import openslide

    with openslide.OpenSlide(str(path)) as slide:
        return [
            _smaller(np.asarray(slide.read_region((x, y), 0, (CROP, CROP)).convert("RGB"))) for x, y in corners.tolist()
        ]


def tiles_under(path: Path, corners: np.ndarray) -> list[int]:
    """Numbers of the tiles of full resolution under the crops, each once."""
    with tifffile.TiffFile(path) as file:
        page = file.pages[0].aspage()
        across, found = -(-page.imagewidth // page.tilewidth), set()
        for x, y in corners.tolist():
            for row in range(y // page.tilelength, (y + CROP - 1) // page.tilelength + 1):
                columns = range(x // page.tilewidth, (x + CROP - 1) // page.tilewidth + 1)
                found |= {row * across + column for column in columns}
    return sorted(found)


def decoded(path: Path, tiles: Sequence[int]) -> int:
    """Decode each of the tiles once, and return the bytes of their pixels."""
    total = 0
    with tifffile.TiffFile(path) as file:
        page = file.pages[0].aspage()
        for tile in tiles:
            file.filehandle.seek(page.dataoffsets[tile])
            content = file.filehandle.read(page.databytecounts[tile])
            total += page.decode(content, tile, jpegtables=page.jpegtables, jpegheader=page.jpegheader)[0].nbytes
    return total


def rows(side: int, repeats: int) -> list[Row]:
    """Megabytes of tiles for a second of processor time, each tile counted once, of each way; they take turns in each round."""
    with tempfile.TemporaryDirectory() as folder:
        path = write_slide(Path(folder) / "slide.tif", side)
        corners = corners_on(side)
        tiles = tiles_under(path, corners)
        megabytes = decoded(path, tiles) / 1e6
        pixels = tifffile.imread(path, level=0)
        ways: dict[str, Callable[[], object]] = {
            DECODER: lambda: decoded(path, tiles),
            CUTTING: lambda: from_memory(pixels, corners),
            OURS: lambda: ours(path, corners),
            OPENSLIDE: lambda: with_openslide(path, corners),
            TIFFFILE: lambda: with_tifffile(path, corners),
            AGAIN: lambda: ours(path, corners),
        }
        notes = {name: str(error) for name in (TIFFFILE, OPENSLIDE) if (error := _missing(ways[name])) is not None}
        seconds: dict[str, list[float]] = {name: [] for name in ways if name not in notes}
        for _ in range(repeats):
            for name, taken in seconds.items():
                start = time.process_time()
                ways[name]()
                taken.append(time.process_time() - start)
    about: dict[str, Any] = {
        "operation": READING,
        "n": len(corners),
        "d": CROP,
        "dtype": "uint8",
        "setting": f"side={side}",
    }
    found = []
    for name in ways:
        if name in notes:
            found.append(Row(provider=name, metric="MB/s", note=notes[name], **about))
            continue
        found.append(Row.of([megabytes / each for each in seconds[name]], provider=name, metric="MB/s", **about))
        shares = [alone / each for alone, each in zip(seconds[DECODER], seconds[name], strict=True)]
        found.append(Row.of(shares, provider=name, metric="share of the decoder", **about))
    return found


def _missing(way: Callable[[], object]) -> ImportError | None:
    """What is not installed; else the way is warm."""
    try:
        way()
    except ImportError as error:
        return error
    return None


def table(found: Sequence[Row]) -> str:
    """The rows as Markdown."""
    lines = []
    for row in found:
        if row.metric != "MB/s":
            continue
        share = next((each for each in found if each.provider == row.provider and each.metric != "MB/s"), None)
        if share is None:
            lines.append([row.provider, row.note, ""])
        else:
            lines.append(
                [row.provider, f"{row.median:.0f}", f"{share.median:.2f} ({share.p20:.2f} .. {share.p80:.2f})"]
            )
    return markdown(["way", "MB/s", "of the decoder's rate"], lines)


def main(arguments: list[str] | None = None, page: Path = PAGE) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=6000, help="of the slide, pixels")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--write", action="store_true", help="write the rows, and the table into docs/benchmarks.md")
    options = parser.parse_args(arguments)
    found = rows(options.side, options.repeats)
    text = table(found)
    print(text)
    if options.write:
        readers = [f"{name} {importlib.metadata.version(name)}" for name in _READERS if find_spec(_READERS[name])]
        where = f"{device_name()}; {', '.join([versions(), *readers])}; commit {commit()}, {datetime.date.today()}."
        replace_between(page, "slides", f"{where}\n\n{text}")
        append(
            found, path_for().with_stem(f"{path_for().stem}-slides"), datetime.datetime.now().isoformat(" ", "seconds")
        )


if __name__ == "__main__":
    main()
