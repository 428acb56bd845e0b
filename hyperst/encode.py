"""Features of an encoder at any widths, computed once and kept in files of HEST's and TRIDENT's layout."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from hyperst.config import RunConfig
from hyperst.data import Section
from hyperst.data.crops import require_extent
from hyperst.data.dataset import normalise_image
from hyperst.data.feature_source import FeatureSource
from hyperst.data.images import SlideImage
from hyperst.data.readers.features import read_patch_features
from hyperst.files import atomic_path, require_space, require_writable
from hyperst.model.backbones import Backbone, build_backbone, declared_normalisation, is_pretrained, require_weights

__all__ = ["LoadedEncoder", "encode_section", "encoder_checksum", "feature_path", "load_encoder", "require_widths"]

_MAGNIFICATION_UM = 10.0  # um/px times magnification: 0.5 um/px is 20x


@dataclass(frozen=True)
class LoadedEncoder:
    """An encoder ready to compute features.

    Attributes:
        backbone: in evaluation mode, on ``device``.
        name: as `--backbone` takes it.
        checksum: see :func:`encoder_checksum`.
        image_size: side of its crops in pixels.
    """

    backbone: Backbone
    name: str
    checksum: str
    image_size: int
    device: torch.device


def load_encoder(config: RunConfig, device: torch.device) -> LoadedEncoder:
    """Load the encoder that ``config.model`` names, to be used as it is.

    Raises:
        ValueError: an encoder that is trained with a run and so has no features of its own, or weights that do not fit.
        FileNotFoundError: no such file of weights. ImportError: timm or safetensors is missing.
    """
    model = config.model
    if not (is_pretrained(model.backbone) or model.backbone == "stain"):
        raise ValueError(
            f"backbone {model.backbone!r} has no features before it is trained; give an encoder with weights (--backbone uni "
            "--weights FILE), or --backbone stain"
        )
    require_weights(model.backbone, model.weights, config.crop.image_size)
    backbone = build_backbone(
        model.backbone,
        weights=model.weights,
        image_size=config.crop.image_size,
        timm_kwargs=model.timm_kwargs,
        normalisation=model.normalisation or declared_normalisation(model.backbone),
    )
    backbone = backbone.eval().requires_grad_(False)
    return LoadedEncoder(
        backbone.to(device), model.backbone, encoder_checksum(backbone), config.crop.image_size, device
    )


def encoder_checksum(encoder: nn.Module) -> str:
    """SHA-256, in hexadecimal, of all weights of an encoder and of the normalisation of its images, whatever file they are from.

    >>> layer = nn.Linear(2, 2)
    >>> before = encoder_checksum(layer)
    >>> _ = layer.weight.data.add_(1)
    >>> len(before), encoder_checksum(layer) == before
    (64, False)
    """
    digest = hashlib.sha256()
    tensors = {**dict(encoder.named_parameters()), **dict(encoder.named_buffers())}  # buffers that no file holds, too
    for name in sorted(tensors):
        if name.endswith("num_batches_tracked"):  # counts steps of training, which no feature depends on
            continue
        digest.update(f"{name} {tuple(tensors[name].shape)} ".encode())
        digest.update(tensors[name].detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def feature_path(folder: str | Path, encoder: str, width_um: float, name: str) -> Path:
    """Where the features of section ``name`` go: a folder for each encoder and width, which `--features` takes.

    >>> feature_path("features", "timm:resnet18", 112.0, "A").as_posix()
    'features/timm-resnet18_112um/A.h5'
    """
    return Path(folder) / f"{encoder.replace(':', '-').replace('/', '-')}_{width_um:g}um" / f"{name}.h5"


def encode_section(
    encoder: LoadedEncoder,
    section: Section,
    width_um: float,
    path: str | Path,
    *,
    barcodes: bool = True,
    batch_size: int = 64,
    on_batch: Callable[[int], None] | None = None,
) -> bool:
    """Write the features of square crops of ``width_um`` around a section's spots, unless ``path`` holds just these already.

    The file has arrays "features" (spot width, float32, in one piece), "coords" (spot 2, top left corners x, y in whole pixels of
    the full-resolution image) and "barcode", with the attributes that TRIDENT writes, and those of :class:`FeatureSource`.

    Args:
        barcodes: whether spots have names that others know; False finds them by position alone.
        on_batch: called with the number of spots of each batch.

    Returns:
        Whether anything was computed.

    Raises:
        FileExistsError: ``path`` holds something else.
        FileNotFoundError, ValueError: no image, or see :func:`require_widths`.
        OSError: the disk has no room for the file.
    """
    path = Path(path)
    (side,) = require_widths(section, [width_um])
    source = FeatureSource(encoder.name, encoder.checksum, float(width_um), encoder.image_size)
    corners = section.spot_px - side / 2
    if path.exists():
        _require_same(path, source, section, corners)
        return False
    require_writable(path)
    require_space(path, round(1.1 * 4 * section.n_spots * encoder.backbone.width))
    with section.open_image() as image, atomic_path(path) as temporary:
        _write(temporary, encoder, section, image, corners, source, barcodes, batch_size, on_batch)
    return True


def require_widths(section: Section, widths_um: Sequence[float]) -> list[float]:
    """Widths of crops in full-resolution pixels. Raises ValueError where um/px are unknown, or the slide is far smaller."""
    um_per_px = section.grid.um_per_px
    if um_per_px is None:
        raise ValueError(
            f"section {section.name}: the width of crops is in um, but the um/px of the image are unknown; give --mpp"
        )
    widths = [width / um_per_px for width in widths_um]
    require_extent(section, widths)
    return widths


def _write(
    path: Path,
    encoder: LoadedEncoder,
    section: Section,
    image: SlideImage,
    corners: np.ndarray,
    source: FeatureSource,
    barcodes: bool,
    batch_size: int,
    on_batch: Callable[[int], None] | None,
) -> None:
    import h5py

    assert source.width_um is not None
    assert section.grid.um_per_px is not None
    side = source.width_um / section.grid.um_per_px
    with h5py.File(path, "w") as file:
        features = file.create_dataset("features", (section.n_spots, encoder.backbone.width), np.float32)
        features.attrs.update({"name": section.name, **source.attributes})
        coords = file.create_dataset("coords", data=np.rint(corners).astype(np.int64))  # as those of HEST and TRIDENT
        coords.attrs.update(
            {
                "patch_size": encoder.image_size,
                "patch_size_level0": round(side),
                "level0_magnification": _MAGNIFICATION_UM / section.grid.um_per_px,
                "target_magnification": _MAGNIFICATION_UM * encoder.image_size / source.width_um,
                "level0_width": image.width,
                "level0_height": image.height,
                "name": section.name,
            }
        )
        if barcodes:
            file["barcode"] = [str(name) for name in section.spot_ids]
        for start in range(0, section.n_spots, batch_size):
            stop = min(start + batch_size, section.n_spots)
            crops = [image.read(x, y, side, side, size=encoder.image_size) for x, y in corners[start:stop]]
            with torch.inference_mode():
                values = encoder.backbone(normalise_image(np.stack(crops)).to(encoder.device)).float().cpu().numpy()
            if not np.isfinite(values).all():
                raise FloatingPointError(
                    f"section {section.name}: features of {encoder.name} are NaN or infinite; look at its weights and normalisation"
                )
            features[start:stop] = values
            if on_batch is not None:
                on_batch(stop - start)


def _require_same(path: Path, source: FeatureSource, section: Section, corners: np.ndarray) -> None:
    """Raise unless ``path`` holds what would be computed."""
    held = read_patch_features(path)
    differences = held.source.differences(source)
    if held.source.checksum is None:
        differences = ["it does not say of which encoder it is"]
    if held.barcodes is not None and list(map(str, held.barcodes)) != list(map(str, section.spot_ids)):
        differences.append("it is of other spots")
    if held.corners is None or not np.array_equal(held.corners, np.rint(corners)):
        differences.append("its patches lie elsewhere")
    if differences:
        raise FileExistsError(
            f"{path} exists, and holds other features: {', '.join(differences)}. It is not overwritten; name another folder with "
            "--output, or remove it"
        )
