"""The report: one self-contained page, and a table for the terminal, from the numbers of `report.json`."""
