"""The tests: `rules.py` is the table of rules, `reference.py` their formulas in float64, and the rest reads both."""
