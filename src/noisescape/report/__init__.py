"""A run as figures and one HTML page that opens offline."""

from noisescape.report.combined import write_combined_report
from noisescape.report.monitor_page import write_noise_report
from noisescape.report.page import Figure, Interactive, Section, Table, render
from noisescape.report.single import write_report
from noisescape.report.subject import open_subject

__all__ = [
    "Figure",
    "Interactive",
    "Section",
    "Table",
    "open_subject",
    "render",
    "write_combined_report",
    "write_noise_report",
    "write_report",
]
