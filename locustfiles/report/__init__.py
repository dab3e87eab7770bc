"""The report of a load test: numbers, plots and one HTML page, from the files that a run leaves."""
