"""
Each page checked against itself: is the line of code the formula that stands above it?

`comments` finds the formulas of a page, `notation` reads them, `values` evaluates what the recorder writes down,
`watch` compares the two while a rule is read, `cases` says with which options rules are read, and `check` reports.
"""
