"""One HTML file that says whether to believe a run, and shows what it predicts."""

from hyperst.report.page import require_report, write_report

__all__ = ["require_report", "write_report"]
