"""A run as figures and one HTML page that opens offline."""

from noisescape.report.combined import write_combined_report
from noisescape.report.page import Figure, Interactive, Section, Table, render
from noisescape.report.single import write_report

__all__ = ["Figure", "Interactive", "Section", "Table", "render", "write_combined_report", "write_report"]
