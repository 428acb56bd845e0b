"""Where precomputed features come from: the encoder, its weights, and what it saw."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

__all__ = ["FeatureSource"]


@dataclass(frozen=True)
class FeatureSource:
    """What a file says of how its features were made; None where it does not say.

    Attributes:
        encoder: name of the encoder; files of TRIDENT say it too.
        checksum: of the encoder's weights and normalisation, see :func:`hyperst.encode.encoder_checksum`.
        width_um: width of the crops in um.
        image_size: side of the crops in pixels, as the encoder saw them.

    >>> ours, theirs = FeatureSource("uni", "5f", 112.0, 224), FeatureSource("uni")
    >>> ours.differences(theirs), ours.differences(FeatureSource("uni", "5f", 255.0, 224))
    ([], ['width_um is 112.0, not 255.0'])
    """

    encoder: str | None = None
    checksum: str | None = None
    width_um: float | None = None
    image_size: int | None = None

    @classmethod
    def of_attributes(cls, attributes: Mapping[str, Any]) -> FeatureSource:
        """Read the attributes of the array of features. Those of other kinds than this library writes say nothing."""

        def told(name: str, kind: type) -> Any:
            value = attributes.get(name)
            value = value.item() if isinstance(value, np.generic) else value
            return value if isinstance(value, kind) else None

        return cls(told("encoder", str), told("checksum", str), told("width_um", float), told("image_size", int))

    @property
    def attributes(self) -> dict[str, Any]:
        """What :meth:`of_attributes` reads."""
        return {name: value for name, value in vars(self).items() if value is not None}

    def differences(self, other: FeatureSource) -> list[str]:
        """What both say, and not alike, in words."""
        pairs = [(entry.name, getattr(self, entry.name), getattr(other, entry.name)) for entry in fields(self)]
        return [
            f"{name} is {own!r}, not {wanted!r}"
            for name, own, wanted in pairs
            if None not in (own, wanted) and own != wanted
        ]
