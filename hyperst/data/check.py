"""What is wrong with a file, before an hour is lost."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hyperst.data.images.scale import scale_conflict
from hyperst.data.niches import niche_members
from hyperst.data.sources import SectionSource

__all__ = ["Finding", "check_section"]


@dataclass(frozen=True)
class Finding:
    """One thing found: ``level`` is "error", "warning" or "ok"."""

    level: str
    message: str
    remedy: str = ""


def check_section(
    path: str | Path | SectionSource,
    *,
    image: str | Path | None = None,
    images_dir: str | Path | None = None,
    mpp: float | None = None,
    gene_names: str | None = None,
) -> list[Finding]:
    """Read a section as training would, and say what was found. A bad file is a finding, never an exception."""
    source = path if isinstance(path, SectionSource) else SectionSource(Path(path))
    try:
        section = source.read(image=image, images_dir=images_dir, mpp=mpp, gene_names=gene_names)
    except (OSError, ValueError, TypeError, KeyError, MemoryError) as error:
        return [Finding("error", str(error))]
    findings = [
        Finding(
            "ok", f"{section.n_spots} spots, {len(section.genes)} genes, patient {section.patient or 'not recorded'}"
        )
    ]
    median = float(np.median(section.library_size))
    empty = int((section.library_size == 0).sum())
    findings.append(Finding("ok", f"raw counts, median {median:g} per spot"))
    if empty:
        findings.append(
            Finding("warning", f"{empty} spots without a single count", "their targets are 0; filter them if unwanted")
        )
    if median < 500:
        findings.append(Finding("warning", f"median count per spot is {median:g}", "expect noisy correlations"))
    grid = section.grid
    scale = "unknown um/px" if grid.um_per_px is None else f"{grid.um_per_px:.4g} um/px"
    pitch = "no regular grid" if grid.pitch_px is None else f"{grid.kind} grid, pitch {grid.pitch_px:.4g} px"
    findings.append(Finding("ok" if grid.pitch_px else "warning", f"{pitch}, {scale}"))
    if grid.um_per_px is None:
        with section.open_image() as opened:
            ignored = f" ({opened.scale.problem})" if opened.scale.problem else ""
        findings.append(
            Finding(
                "warning",
                f"um/px is not recorded{ignored}",
                "crops are cut in units of the pitch; give --mpp if you know it",
            )
        )
    if grid.pitch_px:
        sizes = niche_members(section).sum(axis=1)
        alone = int((sizes <= 1).sum())
        findings.append(Finding("ok", f"niches of up to {int(sizes.max())} spots, {alone} spots without neighbours"))
    with section.open_image() as opened:
        findings.append(Finding("ok", f"image {opened.width} x {opened.height} px: {section.image_path}"))
        conflict = scale_conflict(grid.um_per_px, opened.scale, section.image_path)
        if conflict:
            findings.append(Finding("warning", conflict, "make sure which one is right; crops are cut by the one used"))
    if section.patient is None:
        findings.append(Finding("warning", "no patient recorded", "splits by patient will refuse this section"))
    return findings
