"""Precomputed image features of a section: which patch of a file is which spot's, and what is told about the rest."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from scipy.spatial import cKDTree

from hyperst.data.crops import CropConfig
from hyperst.data.feature_rows import FeatureRows, FeatureTable, MemberMeans
from hyperst.data.feature_source import FeatureSource
from hyperst.data.niches import level_members
from hyperst.data.quality import take_spots
from hyperst.data.readers.features import PatchFeatures, find_features, read_patch_features
from hyperst.data.sections import Section, image_name

__all__ = [
    "FILE_KEY",
    "attach_features",
    "common_width",
    "feature_sources",
    "features_hash",
    "level_features",
    "match_patches",
    "own_levels",
]

FILE_KEY = "file"
"""`data.feature_key` of a run whose features come from files."""

_HALF, _NEARLY_ALL = 0.5, 0.9  # shares of the spots
_PLURAL = {"niche": "niches"}
_ROWS_AT_ONCE = 8192
_HASHED_SPOTS = 64
_DOWNSAMPLED = (2, 4, 8, 16, 32)
_OTHER_SECTION = "It is the file of another section, whose barcodes are the same"
_FEW_COVERED = (
    "At least half must: give the file of this section, with positions in pixels of its full-resolution image, or patches on "
    "all of its tissue"
)


def attach_features(
    section: Section,
    features: str | Path,
    niche_features: str | Path | None = None,
    *,
    wider_features: Mapping[str, str | Path] | None = None,
    key: str = FILE_KEY,
) -> Section:
    """``section`` with precomputed features from HDF5 files, see :func:`hyperst.data.readers.features.read_patch_features`.

    A patch belongs to a spot by its barcode; in a file without barcodes of these spots, to the spot that lies in it: its
    centre is within half a patch of the spot along x and along y, and the nearest one counts. Spots without a patch are
    left out of the section, with a warning that names them. Where the file tells both, patches with the spots' barcodes must
    lie on the spots. Where it tells the size of its slide, that is the size of the section's image.

    Args:
        features: file of the spots' features, or a folder with NAME.h5 for a section called NAME.
        niche_features: the same for the niches; None: a niche's feature is the mean over its spots.
        wider_features: the same for levels wider than the niche, by name; those left out are means over spots too.
        key: name that a run knows the features by (`data.feature_key`).

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file holds no features, none of them is of a spot of the section, a barcode of a spot is there
            twice, features are NaN or infinite, those of spot and niche have different widths, or the file is of another slide:
            of another size, of another name and with other barcodes, or with patches on fewer than half of the spots.

    >>> import h5py, tempfile
    >>> from hyperst.data import read_section
    >>> from hyperst.synthetic import write_tissue
    >>> folder = tempfile.mkdtemp()
    >>> section = read_section(write_tissue(folder, seed=0, name="S0", n_rows=5, n_cols=5))
    >>> with h5py.File(f"{folder}/S0.h5", "w") as file:
    ...     file["embeddings"] = np.arange(50.0).reshape(25, 2)
    ...     file["barcode"] = section.spot_ids.astype("S")
    >>> attach_features(section, folder).load_features("file")[3]
    array([6., 7.], dtype=float32)
    """
    files = {"spot" if niche_features is not None else None: find_features(features, section.name)}
    given = {**({} if niche_features is None else {"niche": niche_features}), **(wider_features or {})}
    files |= {level: find_features(place, section.name) for level, place in given.items()}
    patches = {level: read_patch_features(file) for level, file in files.items()}
    found = {level: match_patches(section, each) for level, each in patches.items()}
    keep = np.all([rows >= 0 for rows in found.values()], axis=0)
    _tell_left_out(section, keep, list(files.values()))
    values, sources = {}, {}
    for level, each in patches.items():
        name = key if level is None else f"{key}_{level}"
        values[name], sources[name] = FeatureRows(each.values, found[level][keep]), each.source
        _require_finite(each.path, values[name], section.spot_ids[keep])
    kept = take_spots(section, keep)
    return replace(
        kept,
        features={**kept.features, **values},
        feature_sources={**kept.feature_sources, **sources},
        features_path=next(iter(files.values())),
        niche_features_path=files.get("niche"),
        wider_features_paths={level: files[level] for level in wider_features or {}},
    )


def match_patches(section: Section, patches: PatchFeatures) -> np.ndarray:
    """Row in ``patches`` of each spot, int64 (spot,), -1 where there is none; see :func:`attach_features`.

    Raises:
        ValueError: no spot has a patch, a barcode of a spot is there twice, or the patches lie elsewhere: their coordinates are
            exchanged or those of a coarser resolution, or they are of another slide, see :func:`attach_features`.
    """
    rows = np.full(section.n_spots, -1)
    if patches.barcodes is not None:
        rows = _by_barcode(section, patches.path, patches.barcodes)
    _check_size(section, patches, rows)
    _check_place(section, patches, rows)
    other_name = _other_name(section, patches)
    if other_name and (rows >= 0).any():
        warnings.warn(
            f"{patches.path}: it says that it is of {other_name}, not of section {section.name}, whose barcodes it has; make "
            "sure that it is the file of this section",
            stacklevel=3,
        )
    by_position = (rows < 0).all() and patches.centres is not None and patches.side_px is not None
    if by_position:
        if patches.barcodes is not None:
            if other_name:
                raise ValueError(
                    f"{patches.path}: it says that it is of {other_name}, not of section {section.name}, and no barcode is a spot "
                    f"of the section ({patches.barcodes[0]}, not {section.spot_ids[0]}). Give the file of this section; where it "
                    "is, correct its attribute name, or its barcodes"
                )
            warnings.warn(
                f"{patches.path}: no barcode is a spot of section {section.name} ({patches.barcodes[0]}, not "
                f"{section.spot_ids[0]}), so patches are found by their position",
                stacklevel=3,
            )
        rows = _by_position(section, patches)
        _check_coverage(section, patches, float((rows >= 0).mean()))
    if (rows < 0).all():
        raise ValueError(f"{patches.path} has no patch of a spot of section {section.name}: {_why(section, patches)}")
    return rows


def level_features(section: Section, key: str, crop: CropConfig) -> dict[str, FeatureTable]:
    """Features of the spots at each level of ``crop``, of one width, by the level's name.

    Those of the spot are ``KEY_spot`` where there is ``KEY_niche``, else ``KEY``. Those of another level are ``KEY_LEVEL``, and
    where there are none the mean over the spots of the level.

    Raises:
        ValueError: the section has no such features; the message names those it has. They are not finite, or of two widths.
    """
    levels = own_levels(section, key, crop)
    own = f"{key}_spot" if "niche" in levels else key
    if own not in section.feature_keys():
        held = ", ".join(section.feature_keys()) or "none"
        raise ValueError(
            f"section {section.name} has no features {key!r}, nor {key + '_spot'!r} with {key + '_niche'!r}; features found: "
            f"{held}. Choose one with --feature-key (data.feature_key), or give a file of features with --features"
        )
    spot = _rows(section, own)
    found: dict[str, FeatureTable] = {"spot": spot}
    for level in crop.levels[1:]:
        if level not in levels:
            found[level] = MemberMeans(spot, level_members(section, level, crop))
            continue
        found[level] = _rows(section, f"{key}_{level}")
        if found[level].shape[1] != spot.shape[1]:
            raise ValueError(
                f"section {section.name}: features of spots have {spot.shape[1]} numbers and those of {_PLURAL.get(level, level)} "
                f"{found[level].shape[1]}; both must come from one encoder"
            )
    return found


def common_width(sections: Sequence[Section], tables: Sequence[Mapping[str, FeatureTable]]) -> int:
    """Width of the features of all sections, which :func:`level_features` has found. Raises ValueError where they differ."""
    widths = {section.name: table["spot"].shape[1] for section, table in zip(sections, tables, strict=True)}
    if len(set(widths.values())) > 1:
        each = ", ".join(f"{name} has {width}" for name, width in widths.items())
        raise ValueError(
            f"the features of the sections differ in width: {each} numbers per spot; take them from one encoder"
        )
    return next(iter(widths.values()))


def own_levels(section: Section, key: str, crop: CropConfig) -> set[str]:
    """Levels that have features of their own, ``KEY_LEVEL``, and not the mean over their spots; a niche beside ``KEY_spot``."""
    names = set(section.feature_keys())
    found = {level for level in crop.levels[1:] if f"{key}_{level}" in names}
    return found if f"{key}_spot" in names else found - {"niche"}


def feature_sources(section: Section, key: str, crop: CropConfig) -> dict[str, FeatureSource]:
    """What files say of the features of the spot, and of each level that has its own."""
    names = _feature_names(section, key, crop)
    return {level: section.feature_sources[name] for level, name in names.items() if name in section.feature_sources}


def features_hash(section: Section, key: str, crop: CropConfig) -> str:
    """Hash of the features of at most 64 spots, spread over the section, of the spot and of each level that has its own."""
    spots = np.unique(np.linspace(0, section.n_spots - 1, _HASHED_SPOTS).round().astype(np.int64))
    digest = hashlib.blake2b(digest_size=16)
    for level, name in sorted(_feature_names(section, key, crop).items()):
        digest.update(f"{level} ".encode() + np.ascontiguousarray(_rows(section, name).read(spots)).tobytes())
    return digest.hexdigest()


def _feature_names(section: Section, key: str, crop: CropConfig) -> dict[str, str]:
    """Names of the features of the spot, and of each level that has its own."""
    own = own_levels(section, key, crop)
    return {"spot": f"{key}_spot" if "niche" in own else key, **{level: f"{key}_{level}" for level in own}}


def _rows(section: Section, key: str) -> FeatureRows:
    """Features by their key; those in a file of their own are not read yet."""
    held = section.features.get(key)
    values = section.load_features(key) if held is None else held
    return values if isinstance(values, FeatureRows) else FeatureRows(values, np.arange(len(values)))


def _by_barcode(section: Section, path: Path, barcodes: np.ndarray) -> np.ndarray:
    wanted = {str(name): spot for spot, name in enumerate(section.spot_ids)}
    rows = np.full(section.n_spots, -1)
    twice = []
    for row, barcode in enumerate(barcodes):
        spot = wanted.get(str(barcode))
        if spot is None:
            continue
        if rows[spot] >= 0:
            twice.append(str(barcode))
        rows[spot] = row
    if twice:
        raise ValueError(
            f"{path}: {len(twice)} spots of section {section.name} have more than one row ({_some(twice)}); keep one per barcode"
        )
    return rows


def _by_position(section: Section, patches: PatchFeatures) -> np.ndarray:
    assert patches.centres is not None
    assert patches.side_px is not None
    distance, row = cKDTree(patches.centres).query(section.spot_px, p=np.inf)
    rows = np.where(distance <= patches.side_px / 2, row, -1)
    used, times = np.unique(rows[rows >= 0], return_counts=True)
    if (times > 1).any():
        warnings.warn(
            f"{patches.path}: {int((times > 1).sum())} patches of {patches.side_px:g} px lie over more than one spot of "
            f"section {section.name}; {int(times[times > 1].sum())} spots share their features "
            f"({_some(section.spot_ids[np.isin(rows, used[times > 1])])})",
            stacklevel=4,
        )
    return rows


def _check_place(section: Section, patches: PatchFeatures, rows: np.ndarray) -> None:
    """Raise where patches with the spots' barcodes lie elsewhere: barcodes are the same on every slide of one kind."""
    known = rows >= 0
    if patches.centres is None or patches.side_px is None or not known.any():
        return
    apart = np.abs(patches.centres[rows[known]] - section.spot_px[known]).max(axis=1)
    if (apart <= patches.side_px).mean() < _HALF:
        hint = _moved(section.spot_px[known], patches.centres[rows[known]], patches.side_px, each=True)
        raise ValueError(
            f"{patches.path}: its patches with the barcodes of section {section.name} lie {np.median(apart):.0f} px away from the "
            f"spots (median), and a patch has {patches.side_px:g} px. {hint or _OTHER_SECTION}; where the barcodes are right all "
            "the same, leave coords out of the file"
        )


def _check_coverage(section: Section, patches: PatchFeatures, covered: float) -> None:
    """Raise where patches leave out half of the spots, or some that they would not with coordinates exchanged or scaled."""
    assert patches.centres is not None
    assert patches.side_px is not None
    hint = _moved(section.spot_px, patches.centres, patches.side_px)
    if hint or 0 < covered < _HALF:
        raise ValueError(
            f"{patches.path}: only {100 * covered:.0f} % of the spots of section {section.name} lie in a patch. "
            f"{hint or _FEW_COVERED}"
        )


def _check_size(section: Section, patches: PatchFeatures, rows: np.ndarray) -> None:
    """Raise where the file is of a slide of another size than the section's image."""
    size = None if patches.slide_px is None else _image_px(section)
    if patches.slide_px is None or size is None or size == patches.slide_px:
        return
    hint, known = "", rows >= 0
    if patches.centres is not None and patches.side_px is not None and _same_slide(patches.slide_px, size):
        own, centres = (known, patches.centres[rows[known]]) if known.any() else (slice(None), patches.centres)
        hint = _moved(section.spot_px[own], centres, patches.side_px, each=bool(known.any()))
    said = "" if patches.slide_name is None else f", {patches.slide_name},"
    raise ValueError(
        f"{patches.path}: it is of a slide{said} of {patches.slide_px[0]} x {patches.slide_px[1]} px, and the image of section "
        f"{section.name} has {size[0]} x {size[1]} px ({section.image_path}). {hint or 'Give the file of this section'}; where it "
        "is the right one all the same, correct its attributes level0_width and level0_height"
    )


def _same_slide(given: tuple[int, int], size: tuple[int, int]) -> bool:
    """Whether a size is another one with its sides exchanged, or at a coarser resolution: other grids look alike, too."""
    coarser = (all(abs(one * by - other) < by for one, other in zip(given, size, strict=True)) for by in _DOWNSAMPLED)
    return given == size[::-1] or any(coarser)


def _image_px(section: Section) -> tuple[int, int] | None:
    """Width and height of the full-resolution image; None where none can be opened, which features do not need."""
    try:
        with section.open_image() as image:
            return image.width, image.height
    except (OSError, ValueError, ImportError):
        return None


def _other_name(section: Section, patches: PatchFeatures) -> str | None:
    """What the file calls its slide, where that is the name neither of the section nor of its image."""
    names = {section.name} | ({image_name(section.image_path)} if section.image_path is not None else set())
    return None if patches.slide_name in names else patches.slide_name


def _moved(spots: np.ndarray, centres: np.ndarray, side: float, *, each: bool = False) -> str:
    """Words for what would put the patches on more of the spots, each patch on its own spot or any; "" where nothing does."""
    corners = centres - side / 2
    enough = max(_NEARLY_ALL, _share(spots, centres, side, each) + 1 - _NEARLY_ALL)
    tried = {"Exchanging x and y in coords": corners[:, ::-1]}
    for factor in _DOWNSAMPLED:
        tried[f"Multiplying coords by {factor} (they are in pixels of a coarser resolution)"] = corners * factor
    for words, moved in tried.items():
        share = _share(spots, moved + side / 2, side, each)
        if share >= enough:
            return f"{words} would put {100 * share:.0f} % of them there: correct the file"
    return ""


def _share(spots: np.ndarray, centres: np.ndarray, side: float, each: bool) -> float:
    """Share of the spots near their own patch, or in any."""
    if each:
        return float((np.abs(centres - spots).max(axis=1) <= side).mean())
    return float((cKDTree(centres).query(spots, p=np.inf)[0] <= side / 2).mean())


def _tell_left_out(section: Section, keep: np.ndarray, files: Sequence[Path]) -> None:
    if keep.all():
        return
    if not keep.any():
        raise ValueError(
            f"section {section.name}: no spot has features in both {' and '.join(map(str, files))}; give files of one section"
        )
    warnings.warn(
        f"section {section.name}: {int((~keep).sum())} of {len(keep)} spots have no features in "
        f"{' and '.join(map(str, files))} and are left out ({_some(section.spot_ids[~keep])})",
        stacklevel=3,
    )


def _require_finite(path: Path, values: FeatureRows, spot_ids: np.ndarray) -> None:
    """Raise where features are not finite; a file larger than the memory is read in pieces."""
    pieces = np.array_split(np.arange(len(spot_ids)), -(-len(spot_ids) // _ROWS_AT_ONCE))
    broken = np.concatenate([~np.isfinite(values.read(piece)).all(axis=1) for piece in pieces])
    if broken.any():
        raise ValueError(
            f"{path}: features of {int(broken.sum())} spots are NaN or infinite ({_some(spot_ids[broken])}); compute "
            "them again"
        )


def _why(section: Section, patches: PatchFeatures) -> str:
    said = []
    if patches.barcodes is not None:
        said.append(f"its barcodes are {_some(patches.barcodes)}, the spots are {_some(section.spot_ids)}")
    if patches.centres is not None:
        for what, points in (("its patches lie", patches.centres), ("the spots", section.spot_px)):
            (left, top), (right, bottom) = points.min(axis=0), points.max(axis=0)
            said.append(f"{what} at x {left:.0f} to {right:.0f}, y {top:.0f} to {bottom:.0f}")
    return "; ".join(said) + ". Give the file of this section, with positions in pixels of its full-resolution image"


def _some(names: Sequence[str] | np.ndarray) -> str:
    return ", ".join(str(name) for name in names[:5]) + (", ..." if len(names) > 5 else "")
