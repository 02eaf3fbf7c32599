"""
---
title: Learning rates of the pictures
summary: For each rule and problem the best of a small search.
---

# Learning rates of the pictures

A picture with one learning rate for all would tell of that rate, not of the rules. So each rule has its own for each
problem, found by `python -m docs.pictures.tuning`, which prints this table.
"""

#: By name: on the valley, the banana, the saddle, and the digits.
RATES: dict[str, tuple[float, float, float, float]] = {
    "AMSGrad": (0.15, 0.3, 0.04, 0.02),
    "ASGD": (0.04, 0.02, 0.1, 0.7),
    "AdEMAMix": (0.03, 0.1, 0.05, 0.02),
    "AdaBelief": (0.05, 0.03, 0.1, 0.1),
    "Adadelta": (100, 70, 20, 10),
    "Adagrad": (1.5, 0.3, 0.7, 0.05),
    "Adam": (0.15, 0.3, 0.1, 0.02),
    "AdamFP16": (0.15, 0.3, 0.1, 0.02),
    "AdamW": (0.15, 0.3, 0.1, 0.02),
    "AdamWarmup": (0.3, 0.3, 0.04, 0.03),
    "AdamWarmupCosineDecay": (0.3, 0.7, 0.15, 0.15),
    "Adamax": (0.4, 0.3, 0.4, 0.02),
    "Lion": (0.05, 0.05, 0.1, 0.02),
    "Muon": (0.1, 0.1, 0.15, 0.05),
    "NAdam": (0.5, 0.4, 0.2, 0.05),
    "Noam": (20, 50, 4, 10),
    "RAdam": (0.04, 0.03, 0.1, 0.15),
    "RMSprop": (0.15, 0.03, 0.07, 0.005),
    "Rprop": (0.15, 0.05, 0.15, 0.007),
    "SGD": (0.04, 0.02, 0.1, 0.7),
    "Sophia": (0.1, 0.07, 0.1, 0.02),
    "Momentum": (0.01, 0.007, 0.05, 0.15),
}
