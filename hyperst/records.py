"""What a run records of its sections: enough to read them again, and to know them again."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from hyperst.data import CropConfig, Section, attach_features, fingerprint, read_section
from hyperst.data.feature_source import FeatureSource
from hyperst.data.features import feature_sources, features_hash, own_levels

__all__ = ["SectionRecord", "Split"]


@dataclass(frozen=True)
class SectionRecord:
    """Where a section of a run came from and at which scale it was seen, enough to read it again.

    Attributes:
        role: ``"training"`` or ``"validation"``.
        path, image: absolute paths of the file or folder with the counts and of the full-resolution image.
        um_per_px, pitch_px, spot_diameter_px: scale of the image and of the spot grid; None where unknown.
        features, niche_features: absolute paths of the files with precomputed features, None where there are none.
        wider_features: those of levels wider than the niche, by name.
        own_niche: whether niches have precomputed features of their own, not the mean over their spots; None where unknown.
        own_wider: wider levels that have.
        feature_sources: level -> what the file of its features says of the encoder.
        features_hash: of some of its precomputed features, to know them again; None without, and in runs of earlier versions.
        gene_names, kind: how it was read, see :func:`hyperst.data.read_section`; None for the usual.
        excluded_spots: ids of those with fewer counts than `data.min_counts`, which are none of the ``n_spots``.
        fingerprint: of its content, to know it again under another name; None in runs of earlier versions.
    """

    name: str
    patient: str | None
    role: str
    path: str | None
    image: str | None
    n_spots: int
    um_per_px: float | None
    pitch_px: float | None
    spot_diameter_px: float | None
    features: str | None = None
    niche_features: str | None = None
    own_niche: bool | None = None
    gene_names: str | None = None
    kind: str | None = None
    fingerprint: dict[str, Any] | None = None
    excluded_spots: tuple[str, ...] = ()
    wider_features: dict[str, str] = field(default_factory=dict)
    own_wider: tuple[str, ...] = ()
    feature_sources: dict[str, FeatureSource] = field(default_factory=dict)
    features_hash: str | None = None

    def read(self, feature_key: str | None = None) -> Section:
        """Read the section again, with its precomputed features as ``feature_key``.

        Errors: see :func:`hyperst.data.read_section` and :func:`hyperst.data.attach_features`.
        """
        if self.path is None:
            raise ValueError(f"section {self.name} was not read from a file, so it cannot be read again")
        section = read_section(
            self.path,
            image=self.image,
            mpp=self.um_per_px,
            name=self.name,
            patient=self.patient,
            gene_names=self.gene_names,
            kind=self.kind,
            require_image=self.image is not None,
        )
        if self.features is None or feature_key is None:
            return section
        return attach_features(
            section, self.features, self.niche_features, wider_features=self.wider_features, key=feature_key
        )

    @classmethod
    def of(
        cls, section: Section, role: str, feature_key: str | None = None, crop: CropConfig | None = None
    ) -> SectionRecord:
        """The record of ``section`` in its role, in a run on features ``feature_key``, with the levels of ``crop``."""
        key, crop = feature_key, crop or CropConfig()
        own = set() if key is None else own_levels(section, key, crop)
        return cls(
            name=section.name,
            patient=section.patient,
            role=role,
            path=_absolute(section.path),
            image=_absolute(section.image_path),
            n_spots=section.n_spots,
            um_per_px=section.grid.um_per_px,
            pitch_px=section.grid.pitch_px,
            spot_diameter_px=section.spot_diameter_px,
            features=_absolute(section.features_path),
            niche_features=_absolute(section.niche_features_path),
            own_niche=None if key is None else "niche" in own,
            gene_names=section.gene_names,
            kind=section.kind,
            fingerprint=asdict(fingerprint(section)),
            excluded_spots=section.excluded_spots,
            wider_features={level: str(path.resolve()) for level, path in section.wider_features_paths.items()},
            own_wider=tuple(level for level in crop.wider_um if level in own),
            feature_sources={} if key is None else feature_sources(section, key, crop),
            features_hash=None if key is None else features_hash(section, key, crop),
        )

    def own_levels(self) -> set[str] | None:
        """Levels that have precomputed features of their own; None where that is unknown."""
        return None if self.own_niche is None else {*(["niche"] if self.own_niche else []), *self.own_wider}


def _absolute(path: Path | None) -> str | None:
    return None if path is None else str(Path(path).resolve())


@dataclass(frozen=True)
class Split:
    """Which spots teach and which choose the checkpoint.

    Attributes:
        sections: every section of the run.
        validation_spots: per training section the ids of the spots held out; empty with whole validation sections.
    """

    sections: tuple[SectionRecord, ...]
    validation_spots: dict[str, list[str]]

    def role(self, role: str) -> list[SectionRecord]:
        """Records of the sections in ``role``."""
        return [record for record in self.sections if record.role == role]

    @property
    def patients(self) -> set[str]:
        """Known patients of all sections, training and validation."""
        return {record.patient for record in self.sections if record.patient is not None}
