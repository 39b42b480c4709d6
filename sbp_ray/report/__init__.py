"""The report: one self-contained page, and a table for the terminal, from the numbers of `report.json`."""

from sbp_ray.report.page import render_page
from sbp_ray.report.summary import render_summary

__all__ = ["render_page", "render_summary"]
