"""From files to batches: sections, grids, niches, crops, genes, splits, targets."""

from hyperst.data.check import Finding, check_section
from hyperst.data.crops import CropConfig, crop_widths_px, read_crops, resolve_crops
from hyperst.data.dataset import SpotDataset
from hyperst.data.features import attach_features
from hyperst.data.genes import align_genes, common_genes, select_genes
from hyperst.data.grid import Grid, detect_grid
from hyperst.data.images import SlideImage, open_image
from hyperst.data.niches import niche_counts, niche_members
from hyperst.data.sections import Section, find_sections, image_section, read_section
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
from hyperst.data.tissue import TissueMap, find_tissue, tissue_fractions

__all__ = [
    "CropConfig",
    "Finding",
    "Grid",
    "Section",
    "SlideImage",
    "Split",
    "SplitError",
    "SpotDataset",
    "Target",
    "TissueMap",
    "align_genes",
    "attach_features",
    "check_section",
    "common_genes",
    "crop_widths_px",
    "detect_grid",
    "find_sections",
    "find_tissue",
    "image_section",
    "leave_one_patient_out",
    "leave_one_section_out",
    "niche_counts",
    "niche_members",
    "open_image",
    "random_split",
    "read_crops",
    "read_section",
    "resolve_crops",
    "select_genes",
    "spot_validation_split",
    "tile_grid",
    "tissue_fractions",
    "transform",
]
