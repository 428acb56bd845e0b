"""A section: spots with raw counts, where they lie on which image, and how large a pixel is.

:func:`read_section` reads .h5ad (scverse conventions, HEST-1k), Space Ranger folders (Visium, Visium HD) and legacy count
tables, and refuses, with the remedy, what would silently train on nonsense: an image of the wrong resolution, spots outside
it, normalised counts, a wrong scale.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from scipy import sparse

from hyperst.data.feature_rows import FeatureRows
from hyperst.data.feature_source import FeatureSource
from hyperst.data.grid import Grid, contradicting_spots, detect_grid
from hyperst.data.image_files import find_image, image_stem
from hyperst.data.images import IMAGE_SUFFIXES, DamagedTiles, SlideImage, open_image
from hyperst.data.images.scale import LARGEST_SCALE_ERROR, RecordedScale, check_mpp, scale_conflict
from hyperst.data.readers import reader_of
from hyperst.data.readers.features import obsm_keys
from hyperst.data.readers.h5ad import read_h5ad_features
from hyperst.data.readers.spaceranger_files import sample_folder
from hyperst.data.readers.table import SpotTable, check_positions, empty_counts, spot_diameter

__all__ = ["Section", "image_name", "image_section", "read_section"]

_MPP_REMEDY = "Give the um/px of the image that the spot positions refer to with mpp=... (--mpp), or correct the file"
# by which the sides of a downscaled image may be off: rounding of them or of the factor
_SIDE_PX, _SIDE_SHARE = 2.0, 0.01
_SAME_MPP = 0.02  # two numbers that somebody wrote down may be rounded


@dataclass
class Section:
    """One tissue section.

    Attributes:
        name, patient: patient is None when the files do not tell.
        counts: csr_array float32 (spot gene), raw non-negative whole numbers.
        genes, spot_ids: str (gene,), (spot,).
        spot_px: float64 (spot 2), centres x, y in pixels of the full-resolution image.
        array_index: int64 (spot 2) row, column on the array, or None.
        image_path: full-resolution image, or None.
        spot_diameter_px: physical diameter of a spot in full-resolution pixels (Visium: 55 um), or None.
        grid: kind of grid, pitch, and um/px.
        library_size: float32 (spot,), total count over ALL measured genes.
        features: obsm key -> float32 (spot width), for precomputed backbones, or rows of a file; see :meth:`load_features`.
        path: the file or folder the section was read from, or None.
        symbols: str (gene,), symbols of the genes where ``genes`` are other identifiers and the file tells, or None.
        gene_names, kind: what :func:`read_section` was given, to read the section again; None for the usual.
        damaged: takes down tiles of the image that cannot be decoded, which are then white; None makes such a tile an error.
        features_path, niche_features_path, wider_features_paths: files of ``features``, see :func:`hyperst.data.attach_features`.
        feature_sources: key of ``features`` -> what its file says of the encoder.
        excluded_spots: ids of spots left out by :func:`hyperst.data.with_min_counts`.
    """

    name: str
    patient: str | None
    counts: sparse.csr_array
    genes: np.ndarray
    spot_ids: np.ndarray
    spot_px: np.ndarray
    array_index: np.ndarray | None
    image_path: Path | None
    spot_diameter_px: float | None
    grid: Grid
    library_size: np.ndarray
    features: dict[str, np.ndarray | FeatureRows] = field(default_factory=dict)
    path: Path | None = None
    symbols: np.ndarray | None = None
    gene_names: str | None = None
    kind: str | None = None
    damaged: DamagedTiles | None = None
    features_path: Path | None = None
    niche_features_path: Path | None = None
    wider_features_paths: dict[str, Path] = field(default_factory=dict)
    feature_sources: dict[str, FeatureSource] = field(default_factory=dict)
    excluded_spots: tuple[str, ...] = ()

    @property
    def n_spots(self) -> int:
        """Number of spots."""
        return len(self.spot_px)

    def open_image(self) -> SlideImage:
        """Open the full-resolution image. Raises FileNotFoundError when the section has none."""
        if self.image_path is None:
            raise FileNotFoundError(
                f"section {self.name} has no full-resolution image; give it with --image (in Python image=)"
            )
        return open_image(self.image_path, damaged=self.damaged)

    def feature_keys(self) -> list[str]:
        """Names that :meth:`load_features` takes: ``features``, and ``obsm`` entries of an .h5ad file."""
        path = self.path
        in_file = obsm_keys(path) if path is not None and path.suffix.lower() == ".h5ad" and path.is_file() else []
        return sorted({*self.features, *in_file})

    def load_features(self, key: str) -> np.ndarray:
        """``features[key]``, or ``obsm[key]`` of the section's .h5ad file, as float32 (spot width), which is read once and kept.

        Raises:
            ValueError: the section has no such features (the message names those it has), or they are not finite
                (spot width).
        """
        if key in self.features:
            return np.asarray(self.features[key])
        if key not in self.feature_keys():
            raise ValueError(
                f"section {self.name} has no features {key!r}; features found: {', '.join(self.feature_keys()) or 'none'}. "
                "Add them to obsm of an .h5ad file, give a file of features with --features (attach_features), or set "
                "section.features[key] to an array (spot width)"
            )
        assert self.path is not None
        names, values = read_h5ad_features(self.path, key)
        if values.ndim != 2:
            raise ValueError(f"{self.path}: obsm[{key!r}] of shape {values.shape} must be (spot width)")
        place = {name: i for i, name in enumerate(names)}
        values = values[[place[name] for name in self.spot_ids]]
        broken = ~np.isfinite(values).all(axis=1)
        if broken.any():
            raise ValueError(
                f"{self.path}: obsm[{key!r}] of {int(broken.sum())} spots is NaN or infinite "
                f"({', '.join(map(str, self.spot_ids[broken][:5]))}); compute it again"
            )
        self.features[key] = values
        return values


def read_section(
    path: str | Path,
    *,
    image: str | Path | None = None,
    images_dir: str | Path | None = None,
    mpp: float | None = None,
    name: str | None = None,
    patient: str | None = None,
    spots: str | Path | None = None,
    kind: str | None = None,
    gene_names: str | None = None,
    require_image: bool = True,
    require_counts: bool = True,
) -> Section:
    """Read one section.

    Args:
        path: .h5ad; Space Ranger folder (with ``filtered_feature_bc_matrix.h5`` or ``matrix.mtx``, and ``spatial/``; for
            Visium HD one ``binned_outputs/square_NNNum`` or ``segmented_outputs``), or the matrix of one section among
            several in a folder; or legacy counts .tsv / .tsv.gz. docs/reference/section_formats.md has the whole list.
        image: the full-resolution image. Else NAME.* or the name that the file gives it in ``images_dir``, if that is given;
            else under the name that the file gives it, or as NAME.* beside the file, in ``images``, ``../images`` and
            ``../wsis``, for a folder of Space Ranger also in the folders above it up to that beside the sample's.
        mpp: um/px of that image. Else: what the file declares, HEST-1k metadata, the spot grid with the known spacing of
            the technology, the image's own metadata; None if nothing tells.
        name, patient: override what the files say. ``name`` is also the image's stem.
        spots: table of selected spots of a legacy section, if not in its usual place.
        kind: "h5ad", "spaceranger" or "table"; default what the path looks like.
        gene_names: column of ``var`` (.h5ad) with the genes' names, or "id" instead of "name" (Space Ranger).
        require_image: False also reads sections without image (``image_path`` is then None).
        require_counts: False reads positions only: ``counts`` is (spot, 0) and ``genes`` empty.

    Spots with in_tissue 0 are left out; spots without any count stay, with a warning. Where the array row and column of a few
    spots contradict their positions, a warning names them and neighbours follow the positions alone (``array_index`` is then
    None).

    Raises:
        FileNotFoundError: the section, its image or one of its files is missing; the message lists where it looked.
        ValueError: the file is damaged; X does not hold raw counts; duplicate gene or spot names; coordinates missing
            or not finite; spots outside the image; a downscaled image; um/px that contradict the spot grid by over 10 %, or
            that no histology image has (below 0.05 or above 20).

    >>> import tempfile
    >>> from hyperst.synthetic import write_tissue
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     section = read_section(write_tissue(folder, seed=0, name="S0", patient="P0", n_rows=5, n_cols=5))
    ...     section.name, section.patient, section.grid.kind, round(section.grid.pitch_um)
    ('S0', 'P0', 'hexagonal', 100)
    """
    path = Path(path)
    reader = reader_of(path, kind)
    usual_name = reader.name(path)
    table = reader.read(
        path, usual_name if name is None else name, None if spots is None else Path(spots), require_counts, gene_names
    )
    image_names = [usual_name]
    if table.source.is_dir():
        image_names += [sample_folder(table.source.resolve()).name, table.source.name]
    image_path = find_image(table, image_names, image, images_dir, require_image)
    recorded = _check_image(table, image_path) if image_path is not None else RecordedScale()
    grid = _resolve_scale(table, mpp, recorded.mpp)
    _warn_of_conflict(grid.um_per_px, recorded, image_path)
    _drop_contradicted_index(table)
    library_size = np.asarray(table.counts.sum(axis=1), dtype=np.float32).ravel()
    if require_counts and not library_size.all():
        empty = table.spot_ids[library_size == 0]
        warnings.warn(
            f"{table.source}: {len(empty)} of {len(library_size)} spots have no count at all "
            f"({', '.join(map(str, empty[:3]))}{' ...' if len(empty) > 3 else ''}); training and "
            "evaluation leave them out (unless --min-counts is 0)",
            stacklevel=2,
        )
    return Section(
        name=table.name,
        patient=patient if patient is not None else table.patient,
        counts=table.counts,
        genes=table.genes,
        spot_ids=table.spot_ids,
        spot_px=table.spot_px,
        array_index=table.array_index,
        image_path=image_path,
        spot_diameter_px=spot_diameter(table, grid),
        grid=grid,
        library_size=library_size,
        path=table.source,
        symbols=table.symbols,
        gene_names=gene_names,
        kind=kind,
    )


def image_section(
    image: str | Path,
    spot_px: np.ndarray,
    *,
    mpp: float | None = None,
    pitch_px: float | None = None,
    spot_diameter_px: float | None = None,
    name: str | None = None,
    source: str | Path | None = None,
) -> Section:
    """A section of positions on an image, without counts: what prediction needs.

    Args:
        spot_px: float (spot 2) x, y in pixels of ``image``.
        source: where the positions come from, for messages; default the image.
        mpp: um/px; else taken from the image's metadata if recorded.
        pitch_px: spacing; else found from the positions.

    Raises:
        FileNotFoundError, ValueError: see :func:`read_section`.
    """
    path = Path(image)
    name = image_name(path) if name is None else name
    spot_px = np.asarray(spot_px, dtype=np.float64)
    ids = np.asarray([f"{name}_{i}" for i in range(len(spot_px))], dtype=str)
    origin = path if source is None else Path(source)
    spot_px = check_positions(spot_px, ids, origin)
    with open_image(path) as opened:
        _check_inside(spot_px, opened, [], origin)
        um_per_px = opened.mpp if mpp is None else check_mpp(mpp, "mpp (--mpp)")
        _warn_of_conflict(um_per_px, opened.scale, path)
    try:
        found = detect_grid(spot_px)
    except ValueError as error:
        raise ValueError(f"{origin}: {error}") from error
    pitch = found.pitch_px if pitch_px is None else float(pitch_px)
    grid = Grid(found.kind, pitch, um_per_px, None if um_per_px is None or pitch is None else pitch * um_per_px)
    counts, genes = empty_counts(len(spot_px))
    library = np.zeros(len(spot_px), dtype=np.float32)
    return Section(name, None, counts, genes, ids, spot_px, None, path, spot_diameter_px, grid, library)


def image_name(path: str | Path) -> str:
    """Name of an image's section: the file's name without the ending that tells its kind.

    >>> image_name("case1.slide1.png"), image_name("case1.slide2.ome.tif")
    ('case1.slide1', 'case1.slide2')
    """
    path = Path(path)
    return image_stem(path) if path.suffix.lower() in IMAGE_SUFFIXES else path.name


def _check_image(table: SpotTable, path: Path) -> RecordedScale:
    """Raise unless ``path`` can be the full-resolution image of the spots; return what it records of its scale."""
    with open_image(path) as opened:
        for size, factor in table.small_images:
            if factor < 0.99 and size == (opened.width, opened.height):
                raise ValueError(
                    f"image {path} is the downscaled image of section {table.name} ({size[0]} x {size[1]} px, "
                    f"{factor:.4g} of full resolution), but spots are in full-resolution pixels; "
                    "give the microscope image that Space Ranger was run on"
                )
        _check_inside(table.spot_px, opened, table.small_images, table.source)
        for size, factor in table.small_images:
            _check_size(table, opened, size, factor)
        return opened.scale


def _check_size(table: SpotTable, image: SlideImage, size: tuple[int, int], factor: float) -> None:
    """Raise where a downscaled image, in whole pixels, is not of an image of this size."""
    for side, small in ((image.width, size[0]), (image.height, size[1])):
        if abs(side * factor - small) > max(_SIDE_PX, _SIDE_SHARE * small):
            raise ValueError(
                f"image {image.path} has {image.width} x {image.height} px, but the downscaled image of {table.source} "
                f"({size[0]} x {size[1]} px, {factor:.4g} of full resolution) is of one of about {size[0] / factor:.0f} x "
                f"{size[1] / factor:.0f} px; give the image that the positions refer to, neither cropped, turned nor rescaled, "
                "or remove the downscaled image from the section if it is of another image"
            )


def _check_inside(
    spot_px: np.ndarray, image: SlideImage, small_images: list[tuple[tuple[int, int], float]], source: Path
) -> None:
    size = np.array([image.width, image.height])
    outside = ((spot_px < 0) | (spot_px > size)).any(axis=1)
    if not outside.any():
        return
    largest = spot_px.max(axis=0)
    message = (
        f"{source}: {int(outside.sum())} of {len(spot_px)} spots lie outside image {image.path} "
        f"({image.width} x {image.height} px); positions reach x {largest[0]:.0f}, y {largest[1]:.0f} and "
        f"start at x {spot_px[:, 0].min():.0f}, y {spot_px[:, 1].min():.0f}"
    )
    ratio = float((largest / size).max())
    if ratio > 1.2:
        factors = ", ".join(f"1/{1 / factor:.3g}" for _, factor in small_images)
        message += (
            f". They reach {ratio:.2f} times too far: the image is likely a downscaled one (hires"
            f"{f', scale factor {factors}' if factors else ''}); give the full-resolution image"
        )
    elif ((spot_px[:, ::-1] >= 0) & (spot_px[:, ::-1] <= size)).all():
        message += ". Exchanging x and y would put all inside: check the order of the columns"
    else:
        message += "; check that image and section belong together"
    raise ValueError(message)


def _resolve_scale(table: SpotTable, mpp: float | None, image_mpp: float | None) -> Grid:
    """Grid with um/px from the first source that tells, checked against the fit of the spot grid."""
    scale = table.scale
    try:
        grid = detect_grid(table.spot_px, table.array_index, scale.pitch_um)
    except ValueError as error:
        raise ValueError(f"{table.source}: {error}") from error
    if scale.staggered_only and grid.kind == "square":
        scale.pitch_um = scale.spot_um = None  # "Visium" was a guess from the file and cannot be right
        grid = Grid(grid.kind, grid.pitch_px)
    declared, source = (mpp, "mpp (--mpp)") if mpp is not None else (scale.mpp, scale.mpp_from)
    if declared is not None:
        check_mpp(declared, f"{table.source}: {source}", "" if mpp is not None else _MPP_REMEDY)
    if mpp is not None and scale.mpp is not None and abs(mpp - scale.mpp) > _SAME_MPP * mpp:
        warnings.warn(
            f"{table.source}: {scale.mpp_from} says {scale.mpp:.4g} um/px, but mpp (--mpp, or a manifest) says {mpp:.4g}, "
            "which is used. Make sure which one is right: leave mpp out, or correct the file",
            stacklevel=3,
        )
    fitted = grid.um_per_px
    if fitted is not None:
        check_mpp(
            fitted,
            f"{table.source}: the spot grid (pitch {grid.pitch_px:.4g} px for {scale.pitch_um:g} um)",
            "Positions must be in pixels of the full-resolution image",
        )
    pitch_um = scale.pitch_um
    if declared is not None and fitted is not None and abs(declared / fitted - 1) > LARGEST_SCALE_ERROR:
        steps = declared / fitted
        if scale.bin_um is None or mpp is not None or round(steps) < 2 or abs(steps / round(steps) - 1) > 0.02:
            raise ValueError(
                f"{table.source}: um/px contradict each other: {source} says {declared:.4g}, the spot grid says {fitted:.4g} "
                f"(pitch {grid.pitch_px:.4g} px for {scale.pitch_um:g} um). {_MPP_REMEDY}"
            )
        pitch_um = scale.pitch_um * round(steps) if scale.pitch_um is not None else None
        warnings.warn(
            f"{table.source}: bins of {scale.bin_um:g} um lie {pitch_um:g} um apart; the positions are those of a "
            "coarser binning",
            stacklevel=3,
        )
    um_per_px = next((value for value in (declared, fitted, image_mpp) if value is not None), None)
    pitch_px = grid.pitch_px
    if um_per_px is not None:
        if grid.kind == "none" and pitch_um is not None:
            pitch_px = pitch_um / um_per_px  # scattered spots do not show their pitch; the technology does
        elif pitch_um is None and pitch_px is not None:
            pitch_um = pitch_px * um_per_px
    return Grid(grid.kind, pitch_px, um_per_px, pitch_um)


def _drop_contradicted_index(table: SpotTable) -> None:
    """Leave neighbours to the positions, with a warning, where the array index of a few spots is not that of their place."""
    if table.array_index is None or not len(odd := contradicting_spots(table.spot_px, table.array_index)):
        return
    table.array_index = None
    names = ", ".join(str(name) for name in table.spot_ids[odd[:5]]) + (" ..." if len(odd) > 5 else "")
    warnings.warn(
        f"{table.source}: the array row and column of {len(odd)} of {len(table.spot_px)} spots ({names}) are not those of "
        "the place where they lie on the image; neighbours are taken from the positions instead. Correct the rows and "
        "columns, or the positions, of these spots",
        stacklevel=3,
    )


def _warn_of_conflict(used: float | None, recorded: RecordedScale, image: Path | None) -> None:
    conflict = scale_conflict(used, recorded, image)
    if conflict:
        warnings.warn(conflict, stacklevel=3)
