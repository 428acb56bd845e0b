"""Predictions for other programs: a table, detections of QuPath, a SpatialData folder."""

from hyperst.export.held_out import held_out_figures
from hyperst.export.write import FORMATS, check_exports, check_formats, export_path, image_of, write_export

__all__ = ["FORMATS", "check_exports", "check_formats", "export_path", "held_out_figures", "image_of", "write_export"]
