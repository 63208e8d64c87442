"""The parts of tools/study.py, which trains several methods with several seeds each.

plan.py     the methods, their configs, and the folders of their runs
runs.py     trains and scores the runs, several at once if asked
records.py  study.csv and settings.json, from which a study goes on
report.py   study.md and study.png
results.py  copies studies into docs/ and rebuilds docs/results.md
"""
