"""What is wrong with a file, before an hour is lost."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from hyperst.data.crops import CropConfig, crop_widths, read_spot_crops
from hyperst.data.images import SlideImage
from hyperst.data.images.scale import scale_conflict
from hyperst.data.niches import niche_members
from hyperst.data.placement import Placement, judge_placement
from hyperst.data.quality import MIN_COUNTS
from hyperst.data.sections import Section
from hyperst.data.small_images import small_image
from hyperst.data.sources import SectionSource
from hyperst.data.tissue import TissueMap, find_tissue, spot_window, tissue_mask

__all__ = ["Finding", "Report", "check_section", "examine_section", "require_placement"]

_CROPS = 12  # spots whose crops are decoded, spread over the section
_FEW_COUNTS = 500
_MOST_BACKGROUND = 0.2  # share of spots: more cannot be a faint edge
_SOME_BACKGROUND = 0.05  # beyond the few that lie on the edge of any section
_PICTURE_PX = 1000
_DRAW = "look at them, drawn by `hyperst check SECTION --output FOLDER`"


@dataclass(frozen=True)
class Finding:
    """One thing found: ``level`` is "error", "warning" or "ok"."""

    level: str
    message: str
    remedy: str = ""


@dataclass
class Report:
    """What was found in one section.

    Attributes:
        path: as it was named.
        findings: at least one.
        section: None where it could not be read.
        placement: where its spots lie on the image; None without an image.
        picture: uint8 (h w 3) image of the whole section, and its pixels per full-resolution pixel; None without one.
    """

    path: Path
    findings: list[Finding] = field(default_factory=list)
    section: Section | None = None
    placement: Placement | None = None
    picture: tuple[np.ndarray, float] | None = None

    @property
    def usable(self) -> bool:
        """Whether nothing was found that is an error."""
        return all(finding.level != "error" for finding in self.findings)

    def say(self, level: str, message: str, remedy: str = "") -> None:
        """Add a finding."""
        self.findings.append(Finding(level, message, remedy))


def check_section(path: str | Path | SectionSource, **options: Any) -> list[Finding]:
    """Read a section as training would, and say what was found; the findings of :func:`examine_section`."""
    return examine_section(path, **options).findings


def examine_section(
    path: str | Path | SectionSource,
    *,
    image: str | Path | None = None,
    images_dir: str | Path | None = None,
    mpp: float | None = None,
    gene_names: str | None = None,
    min_counts: int = MIN_COUNTS,
) -> Report:
    """Read a section as training would, decode crops of a dozen spots, and look whether its spots lie on tissue.

    A bad file is a finding, never an exception. Arguments: see :func:`hyperst.data.read_section`; what a source says of
    itself comes first. ``min_counts`` is the least total count of a spot. Without a full-resolution image, which is an error,
    the spots are looked at on the downscaled image that comes with the section, if there is one.
    """
    source = path if isinstance(path, SectionSource) else SectionSource(Path(path))
    report = Report(source.path)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        report.section = _read(report, source, image=image, images_dir=images_dir, mpp=mpp, gene_names=gene_names)
    if report.section is not None:
        _look_at_counts(report, report.section, min_counts)
        _look_at_grid(report, report.section)
        _look_at_image(report, report.section)
    said = {finding.message for finding in report.findings}
    for message in dict.fromkeys(str(warning.message) for warning in caught if warning.category is UserWarning):
        if message not in said:  # a conflict of um/px has been said with its remedy
            report.say("warning", message)
    return report


def _read(report: Report, source: SectionSource, **options: Any) -> Section | None:
    try:
        return source.read(**options)
    except Exception as error:  # damaged files raise of every kind, from the libraries that read them
        said = isinstance(error, (OSError, ValueError, MemoryError, ImportError))
        report.say("error", str(error) if said else f"{report.path}: {error!r}")
    try:
        section = source.read(**options, require_image=False)
    except Exception:  # the error that has been said, or another one behind it
        return None
    return section if section.image_path is None else None


def _look_at_counts(report: Report, section: Section, min_counts: int) -> None:
    median = float(np.median(section.library_size))
    report.say(
        "ok", f"{section.n_spots} spots, {len(section.genes)} genes, patient {section.patient or 'not recorded'}"
    )
    report.say("ok", f"raw counts, median {median:g} per spot")
    if median < _FEW_COUNTS:
        report.say("warning", f"median count per spot is {median:g}", "expect noisy correlations")
    few = int((section.library_size < min_counts).sum())
    if few:
        report.say(
            "warning" if few < section.n_spots else "error",
            f"{few} of {section.n_spots} spots have fewer than {min_counts} counts",
            "training and evaluation leave them out; --min-counts decides",
        )
    if section.patient is None:
        report.say("warning", "no patient recorded", "splits by patient will refuse this section")


def _look_at_grid(report: Report, section: Section) -> None:
    grid = section.grid
    scale = "unknown um/px" if grid.um_per_px is None else f"{grid.um_per_px:.4g} um/px"
    pitch = "no regular grid" if grid.pitch_px is None else f"{grid.kind} grid, pitch {grid.pitch_px:.4g} px"
    report.say("ok" if grid.pitch_px else "warning", f"{pitch}, {scale}")
    if grid.um_per_px is None:
        ignored = ""
        if section.image_path is not None:
            with section.open_image() as opened:
                ignored = f" ({opened.scale.problem})" if opened.scale.problem else ""
        remedy = "crops are cut in units of the pitch; give --mpp if you know it"
        report.say("warning", f"um/px is not recorded{ignored}", remedy)
    if grid.pitch_px:
        sizes = niche_members(section).sum(axis=1)
        alone = int((sizes <= 1).sum())
        report.say("ok", f"niches of up to {int(sizes.max())} spots, {alone} spots without neighbours")


def _look_at_image(report: Report, section: Section) -> None:
    window = spot_window(section)
    if section.image_path is None:
        report.picture = small_image(section)
        if report.picture is not None:
            pixels, scale = report.picture
            height, width = pixels.shape[:2]
            mask = tissue_mask(pixels, window * scale)
            _look_at_placement(report, section, TissueMap(mask, round(width / scale), round(height / scale)))
        return
    try:
        with section.open_image() as opened:
            report.say("ok", f"image {opened.width} x {opened.height} px: {section.image_path}")
            conflict = scale_conflict(section.grid.um_per_px, opened.scale, section.image_path)
            if conflict:
                report.say("warning", conflict, "make sure which one is right; crops are cut by the one used")
            thumbnail = opened.thumbnail(_PICTURE_PX)
            report.picture = thumbnail, thumbnail.shape[1] / opened.width
            _look_at_placement(report, section, find_tissue(opened, window))
            _look_at_crops(report, section, opened)
    except Exception as error:
        report.say("error", f"image {section.image_path} cannot be read: {error}", "copy or export it again")


def _look_at_crops(report: Report, section: Section, image: SlideImage) -> None:
    """Decode both crops of spots spread over the section: what is damaged or missing shows only when it is read."""
    config = CropConfig()
    try:
        widths = crop_widths(section, config)
    except ValueError as error:
        report.say("warning", str(error))
        return
    spots = _spread(section.spot_px, _CROPS)
    failed = []
    for spot in spots:
        try:
            read_spot_crops(image, section.spot_px[spot], widths, config.image_size)
        except Exception as error:
            failed.append((section.spot_ids[spot], error))
    if failed:
        names = ", ".join(str(name) for name, _ in failed[:3]) + (" ..." if len(failed) > 3 else "")
        report.say(
            "error",
            f"crops of {len(failed)} of the {len(spots)} spots looked at cannot be read ({names}): {failed[0][1]}",
            "copy or export the image again",
        )
    else:
        report.say("ok", f"crops of {len(spots)} spots spread over the section read")


def _spread(spot_px: np.ndarray, n: int) -> np.ndarray:
    """Numbers of at most ``n`` spots: the outermost ones, and others at equal steps from top to bottom."""
    ends = [int(place) for axis in spot_px.T for place in (axis.argmin(), axis.argmax())]
    steps = np.argsort(spot_px[:, 1], kind="stable")[np.linspace(0, len(spot_px) - 1, n).round().astype(int)]
    return np.asarray(list(dict.fromkeys([*ends, *(int(step) for step in steps)]))[:n])


def _look_at_placement(report: Report, section: Section, tissue: TissueMap) -> None:
    report.placement = judge_placement(section.spot_px, tissue, spot_window(section))
    report.findings.append(_placement_finding(section, report.placement, tissue))


def _placement_finding(section: Section, placement: Placement, tissue: TissueMap) -> Finding:
    n = placement.n_background
    if not n:
        return Finding("ok", "every spot lies on tissue")
    message = f"{n} of {section.n_spots} spots lie on background"
    if not tissue.share:
        remedy = "check that it is the H&E image of this section"
        return Finding("error", f"{message}: no tissue found on the image", remedy)
    if placement.explanation is not None:
        message += f"; {placement.explanation} would leave {placement.explained} there"
        return Finding("error", message, f"correct the positions, or the image is of another section: {_DRAW}")
    if n > _MOST_BACKGROUND * section.n_spots:
        return Finding("error", message, f"the positions are wrong, or the image is of another section: {_DRAW}")
    return Finding("warning", message, _DRAW)


def require_placement(section: Section, *, refuse: bool = True) -> None:
    """Say of a section what :func:`check_section` says of where its spots lie: an error is raised, a warning is warned of
    where it is about more than one spot in twenty.

    Sections without an image are passed over, and images whose thumbnail cannot be read: those of their tiles that a spot needs
    are an error when they are read.

    Args:
        refuse: False warns of an error too.

    Raises:
        ValueError: the spots are not those of the image.
    """
    if section.image_path is None:
        return
    window = spot_window(section)
    try:
        with section.open_image() as opened:
            tissue = find_tissue(opened, window)
    except (OSError, ValueError):
        return
    placement = judge_placement(section.spot_px, tissue, window)
    found = _placement_finding(section, placement, tissue)
    if found.level != "error" and placement.n_background <= _SOME_BACKGROUND * section.n_spots:
        return
    message = f"section {section.name} on {section.image_path}: {found.message}; {found.remedy}"
    if found.level == "error" and refuse:
        raise ValueError(message)
    warnings.warn(message, stacklevel=2)
