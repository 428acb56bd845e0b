"""What a run asks of precomputed features: one width, one encoder, and the levels that have features of their own."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

from hyperst.config import RunConfig
from hyperst.data import Section
from hyperst.data.feature_source import FeatureSource
from hyperst.data.features import common_width, feature_sources, level_features, own_levels

__all__ = ["feature_width", "require_same_encoder"]

_PLURAL = {"niche": "niches'"}
_KINDS = ("the mean over the {level}'s spots", "features of the {level} itself")


def feature_width(config: RunConfig, sections: Sequence[Section], own: set[str] | None = None) -> int | None:
    """Width of the precomputed features, the same in all sections; None where crops are used.

    Args:
        own: levels that must have features of their own, and no others; None: as in the first section.

    Raises:
        ValueError: the widths differ, a section has no such features, those of a level are of another kind, or there is no such
            level.
    """
    key = config.data.feature_key
    if key is None:
        return None
    for section in sections:
        for level in section.wider_features_paths:
            if level not in config.crop.wider_um:
                known = (
                    ", ".join(config.crop.wider_um) or "none; --level NAME=UM (crop.wider_um of a --config) adds one"
                )
                raise ValueError(
                    f"section {section.name}: --level-features names {level!r}; levels wider than the niche: {known}"
                )
    width = common_width(sections, [level_features(section, key, config.crop) for section in sections])
    own = own_levels(sections[0], key, config.crop) if own is None else own
    for section in sections:
        for level in sorted(own ^ own_levels(section, key, config.crop), key=config.crop.levels.index):
            wanted = level in own
            has, needs = (_KINDS[kind].format(level=level) for kind in (not wanted, wanted))
            option = "--niche-features" if level == "niche" else f"--level-features {level}=..."
            raise ValueError(
                f"section {section.name}: the {_PLURAL.get(level, level)} features are {has}, those trained on {needs}; "
                f"{'give them' if wanted else 'leave them out'} ({key}_{level} in obsm, or {option})"
            )
    return width


def require_same_encoder(
    config: RunConfig, section: Section, trained_on: Mapping[str, FeatureSource], name: str
) -> None:
    """Raise ValueError where a section's features are of another encoder, other weights or another width than ``trained_on``.

    A warning tells where the files of the training said of which encoder they are and those of the section do not.

    Args:
        trained_on: level -> source. name: whose features these are, for messages.
    """
    key = config.data.feature_key
    if key is None:
        return
    given = feature_sources(section, key, config.crop)
    for level, wanted in trained_on.items():
        found = given.get(level, FeatureSource())
        if differences := found.differences(wanted):
            raise ValueError(
                f"section {section.name}: its features of the {level} are not of the encoder and crops of {name}: "
                f"{', '.join(differences)}. "
                f"Compute them with the same encoder, weights and width (hyperst features{_width_option(wanted)})"
            )
        if wanted.checksum is not None and found.checksum is None:
            warnings.warn(
                f"section {section.name}: its features of the {level} do not say which weights they were computed with; those of "
                f"{name} are by {wanted.encoder}, checksum {wanted.checksum}",
                stacklevel=3,
            )


def _width_option(source: FeatureSource) -> str:
    return "" if source.width_um is None else f" --width-um {source.width_um:g}"
