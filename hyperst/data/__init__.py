"""From files to batches: sections, grids, niches, crops, genes, splits, targets."""

from hyperst.data.check import Finding, check_section
from hyperst.data.crops import CropConfig, crop_widths_px, read_crops, resolve_crops
from hyperst.data.dataset import SpotDataset
from hyperst.data.features import attach_features
from hyperst.data.genes import align_genes, common_genes, select_genes
from hyperst.data.grid import Grid, detect_grid
from hyperst.data.identity import Fingerprint, check_distinct, fingerprint, same_section
from hyperst.data.images import SlideImage, open_image
from hyperst.data.manifest import read_manifest
from hyperst.data.niches import niche_members
from hyperst.data.quality import excluded_spots_message, with_min_counts
from hyperst.data.sections import Section, image_section, read_section
from hyperst.data.sources import SectionSource, distinct_names, find_sections, list_sections
from hyperst.data.splits import (
    Split,
    SplitError,
    leave_one_patient_out,
    leave_one_section_out,
    random_split,
    spot_validation_split,
)
from hyperst.data.targets import Target, transform
from hyperst.data.tiles import tile_grid
from hyperst.data.tissue import TissueMap, find_tissue, spot_window

__all__ = [
    "CropConfig",
    "Finding",
    "Fingerprint",
    "Grid",
    "Section",
    "SectionSource",
    "SlideImage",
    "Split",
    "SplitError",
    "SpotDataset",
    "Target",
    "TissueMap",
    "align_genes",
    "attach_features",
    "check_distinct",
    "check_section",
    "common_genes",
    "crop_widths_px",
    "detect_grid",
    "distinct_names",
    "excluded_spots_message",
    "find_sections",
    "find_tissue",
    "fingerprint",
    "image_section",
    "leave_one_patient_out",
    "leave_one_section_out",
    "list_sections",
    "niche_members",
    "open_image",
    "random_split",
    "read_crops",
    "read_manifest",
    "read_section",
    "resolve_crops",
    "same_section",
    "select_genes",
    "spot_validation_split",
    "spot_window",
    "tile_grid",
    "transform",
    "with_min_counts",
]
