"""Training runs and evaluation results as one HTML page that needs no network: load, figures, page."""

from r1ranker.report.page import write_report

__all__ = ["write_report"]
