"""Tables of predictions, each beside what was measured."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from benchmarks.markdown import markdown
from benchmarks.problem import OURS
from benchmarks.results import FOLDER, read_since
from benchmarks.roofline import counts, model
from benchmarks.roofline.chips import CHIPS, Chip
from tests.kernels.launches import Launches

RESULTS = {"H200": "nvidia-h200-2026-11-27.csv", "H100": "nvidia-h100-80gb-hbm3-2026-11-27.csv"}
BATCHES = (4096, 32768, 65536, 131072, 1048576)
_TORCH = {"bf16": "bfloat16", "float32": "float32"}


class Published(NamedTuple):
    """A time of memeff's CLIP loss, forward and backward, on an A100."""

    n: int
    dim: int
    seconds: float


MEMEFF = (Published(65536, 512, 0.201), Published(131072, 384, 0.703))


class Case(NamedTuple):
    """A loss of n pairs with ``dim`` features on a chip."""

    chip: Chip
    n: int
    dim: int
    dtype: str

    def passes(self, known: dict[str, dict[str, counts.Counted]]) -> tuple[model.Pass, model.Pass]:
        """Forward and backward."""
        given = self.chip, known[self.chip.target][f"{self.dim} {self.dtype}"], self.n, self.dim, self.dtype
        return model.forward(*given), model.backward(*given)

    def measured(self) -> tuple[float, float] | None:
        """Seconds, forward and backward, of the last run that has them."""
        rows = read_since(FOLDER / RESULTS[self.chip.name], "") if self.chip.name in RESULTS else []
        found = {
            row.metric: row.median
            for row in rows
            if (row.operation, row.provider, row.setting, row.note) == ("contrastive_loss", OURS, "", "")
            and (row.n, row.d, row.dtype) == (self.n, self.dim, _TORCH[self.dtype])
        }
        return (found["forward s"], found["both s"] - found["forward s"]) if "both s" in found else None


def cases(chip: Chip) -> Iterator[Case]:
    """All that are predicted of a chip."""
    for dtype in counts.DTYPES:
        for dim in counts.DIMS:
            for n in BATCHES:
                yield Case(chip, n, dim, dtype)


def seconds(value: float) -> str:
    """Three digits, in milliseconds or seconds."""
    return f"{value:.3g} s" if value >= 1 else f"{value * 1e3:.3g}"


def of_counts(known: dict[str, dict[str, counts.Counted]]) -> str:
    """Per pair: instructions of a thread and results of special functions, forward and backward."""
    lines = []
    for target, entries in known.items():
        lanes = next(chip.lanes for chip in CHIPS.values() if chip.target == target)
        for key, found in entries.items():
            dim, dtype = key.split()
            pairs = [(tile, tile.rows * tile.columns / (tile.warps * lanes)) for tile in found[:2]]
            numbers = [f"{n / each:.1f}" for tile, each in pairs for n in (tile.instructions, tile.special)]
            way = "rows" if found.by_rows else "blocks"
            lines.append([target, dim, dtype, *numbers, way, *(_launches(found.launches[n]) for n in (4096, 32768))])
    head = ["target", "D", "dtype", "forward", "special", "backward", "special", "by", "launches, 4096 pairs", "32768"]
    return markdown(head, lines)


def _launches(both: tuple[Launches, Launches]) -> str:
    """Of this library's kernels and of PyTorch's, forward; backward."""
    return "; ".join(f"{one.kernels} + {one.calls}" for one in both)


def of_measured(known: dict[str, dict[str, counts.Counted]]) -> str:
    """Every case that a device has measured."""
    lines = []
    for name in RESULTS:
        for case in cases(CHIPS[name]):
            if found := case.measured():
                line = [name, str(case.n), str(case.dim), case.dtype]
                for one, time in zip(case.passes(known), found, strict=True):
                    by = "launches" if one.launches > one.kernels else "kernels"
                    line += [
                        seconds(one.floor),
                        f"{seconds(one.predicted)} ({by})",
                        seconds(time),
                        f"{time / one.predicted:.2f}",
                    ]
                lines.append(line)
    four = ["floor", "predicted", "measured", "ratio"]
    return markdown(
        ["GPU", "B", "D", "dtype", *(f"{of}, {what}" for of in ("forward", "backward") for what in four)], lines
    )


def of_all(known: dict[str, dict[str, counts.Counted]]) -> str:
    """Predictions of both passes, forward + backward."""
    lines = []
    for case in cases(CHIPS["H200"]):
        line = [str(case.n), str(case.dim), case.dtype]
        for chip in CHIPS.values():
            forward, backward = case._replace(chip=chip).passes(known)
            line.append(f"{seconds(forward.predicted)} + {seconds(backward.predicted)}")
        lines.append(line)
    return markdown(["B", "D", "dtype", *CHIPS], lines)


def of_published(known: dict[str, dict[str, counts.Counted]]) -> str:
    """memeff's times beside predictions for the same batch on the same GPU."""
    lines = []
    for found in MEMEFF:
        line = [str(found.n), str(found.dim), seconds(found.seconds)]
        for dtype in counts.DTYPES:
            both = Case(CHIPS["A100"], found.n, found.dim, dtype).passes(known)
            line.append(
                " .. ".join(seconds(sum(times)) for times in zip(*((p.floor, p.predicted) for p in both), strict=True))
            )
        lines.append(line)
    return markdown(["B", "D", "memeff, published", "ours, bf16: floor .. predicted", "ours, float32"], lines)


TABLES = {
    "roofline measured": of_measured,
    "roofline": of_all,
    "roofline memeff": of_published,
    "roofline counts": of_counts,
}
