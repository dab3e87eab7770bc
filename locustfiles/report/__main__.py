"""`python -m locustfiles.report FOLDER` writes the report of a run again from its records."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from locustfiles.report import files
from locustfiles.report.console import as_text


def main() -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(description="Writes a load test's report again from its records.")
    parser.add_argument("folder", type=Path, help="Folder of a run.")
    folder: Path = parser.parse_args().folder
    try:
        report = files.write_report(folder)
    except (OSError, ValueError) as error:
        print(f"no report: {error}", file=sys.stderr)
        return 1
    print(as_text(report))
    print(f"report: {folder / files.PAGE} and {folder / files.REPORT}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
