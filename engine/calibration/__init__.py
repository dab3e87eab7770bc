"""What a checkpoint's refinement is worth: the measured quality curve, and the ladder that follows from it.

`stepdial calibrate` (`calibrate.py`) measures *cells* (`cells.py`), a rung on a split each, on an evaluation set
(`prompts.py`) in worker processes (`workers.py`, `measuring.py`), takes intervals (`bootstrap.py`, `summary.py`),
chooses the ladder (`frontier.py`) and writes `quality.json`, `ladder.json`, `calibration.md` and `quality.png`.
"""
