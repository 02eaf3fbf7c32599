"""
---
title: Experiments
summary: Models trained on real data with the rules of this package.
---

# Experiments

A rule is only worth reading if it trains something. [The main job](mnist.html) trains a small network on
handwritten digits, with any rule of the package, beside torch's optimizer of the same name if asked:

    python -m optimizers.experiments.mnist --compare

[The sweep](sweep.html) trains with all rules from one start, [each with what suits it](recipes.html), and draws their
losses in one picture:

    python -m optimizers.experiments.mnist --sweep --plot sweep.png

[Performance](performance.html) times the steps of every reader beside torch's and others', and the limit of memory:

    python -m optimizers.experiments.performance

[Minimize](minimize.html) walks to the minimum of a function, beside scipy's methods, and loops in Python and Rust:

    python -m optimizers.experiments.minimize

[Schedules](schedules.html) draws learning rates by step. The parts of the main job are [the data](data.html),
[the training loop](training.html), [the console](console.html), [the report](report.html) and pictures
([in general](chart.html), [of many curves](curves.html)).

Only the experiments need labml, scikit-learn and matplotlib:

    pip install "literate-optimizers[experiments]"
"""
