"""One HTML page that needs nothing else: tables, and plots inside it."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import jinja2

from locustfiles.report.console import number, percent

if TYPE_CHECKING:
    from locustfiles.report.files import Report

TEMPLATE = Path(__file__).with_name("report.html.jinja")
SHOWN_RUNGS = 4
SHOWN_ERRORS = 10


def render(report: Report, plots: Mapping[str, bytes]) -> str:
    """The page; `plots` are PNGs by title."""
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(percent=percent, number=number)
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    images = {title: base64.b64encode(image).decode() for title, image in plots.items()}
    return template.render(
        report=report,
        run=report.run,
        rows=[*report.kinds, report.total],
        plots=images,
        shown_rungs=SHOWN_RUNGS,
        shown_errors=SHOWN_ERRORS,
    )
