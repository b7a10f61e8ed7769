"""A run told as one HTML page that opens offline."""

from noisescape.report.page import Figure, Interactive, Section, Table, render

__all__ = ["Figure", "Interactive", "Section", "Table", "render"]
