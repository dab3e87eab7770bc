"""Sections as tables on the terminal; the JSON has the rest."""

from __future__ import annotations

from typing import Any

Row = dict[str, Any]


def show_section(name: str, section: Row) -> None:
    """One section: its rows in columns, then what failed or was left out."""
    print(f"\n== {name} ({section['seconds']} s)")
    for line in table(section["rows"]):
        print(line)
    for error in section["errors"]:
        print(f"ERROR in {error['name']}: {error['error'].splitlines()[0]}")
    for left in section["left_out"]:
        print(f"left out: {left['name']}: {left['reason']}")
    print(end="", flush=True)


def show_bars(bars: list[Row]) -> None:
    """Each bar with its value."""
    print("\n== bars")
    for bar in bars:
        word = {True: "pass", False: "MISSED"}.get(bar["passed"], bar["passed"])
        print(f"{word:12} {bar['bar']}: {_text(bar['value'])}")


def table(rows: list[Row]) -> list[str]:
    """Rows in columns. Nested values stay in the JSON; rows with the same columns stand together."""
    lines: list[str] = []
    for group in _alike(rows):
        columns = [key for key in group[0] if not isinstance(group[0][key], (dict, list))]
        cells = [columns, *([_text(row.get(key)) for key in columns] for row in group)]
        widths = [max(len(line[place]) for line in cells) for place in range(len(columns))]
        lines += ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in cells]
    return lines


def _alike(rows: list[Row]) -> list[list[Row]]:
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row), []).append(row)
    return list(groups.values())


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "NO"
    if isinstance(value, float):
        return f"{value:.4g}"
    return "-" if value is None else str(value)
