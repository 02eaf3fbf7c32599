r"""
With which options the rules of a page are read, so that every formula is reached, and what is not checked.

A new rule has a row in `CASES`. What its page calls things is known from the class (`letters`), from the usual letters
(`optimizers/engines/tidy.py`), from its own `# $m_0 = 0$` above the state, and from its aligned blocks; `LETTERS` has
what is left.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

#: Steps at which a rule is read.
STEPS = (1, 2, 7, 10_000)

#: Hyper-parameters so large that each is seen.
_ADAM = {"lr": 0.3, "betas": (0.7, 0.9), "eps": 0.05}


@dataclass(frozen=True)
class Case:
    """
    A rule with options. `numbers` are entries of its state that are numbers: a value, or a formula for it. Other
    entries are random. `reading` is how: "recorded", or on "tensors" what no kernel takes, with "sparse" gradients, or
    as the estimate of the "hessian". `tolerance` is for numbers that are kept in float32, as in torch.
    """

    rule: str
    options: dict[str, Any] = field(default_factory=dict)
    numbers: dict[str, float | str] = field(default_factory=dict)
    reading: str = "recorded"
    tolerance: float = 1e-9

    def __str__(self) -> str:
        return f"{self.rule}({', '.join(f'{name}={value!r}' for name, value in self.options.items())})"


def _adams(rule: str, *more: dict[str, Any], **always: Any) -> list[Case]:
    return [Case(rule, {**_ADAM, **always, **options}) for options in ({}, *more)]


_AMSGRAD, _REORDERED, _PLAIN = {"amsgrad": True}, {"optimized_update": True}, {"optimized_update": False}
_RMS = {"lr": 0.3, "alpha": 0.7, "eps": 0.05}
_ASGD = {"lr": 0.3, "lambd": 0.2, "alpha": 0.6, "t0": 1.5}
_MUON = {"lr": 0.3, "momentum": 0.7, "eps": 0.05}

CASES: dict[str, list[Case]] = {
    "ada_belief": _adams("AdaBelief", _AMSGRAD, {"rectify": False}),
    "adadelta": [Case("Adadelta", {"lr": 0.3, "rho": 0.7, "eps": 0.05})],
    "adagrad": [
        Case("Adagrad", {"lr": 0.3, "lr_decay": 0.2, "eps": 0.05, "initial_accumulator_value": 0.4}),
        Case("Adagrad", {"lr": 0.3, "lr_decay": 0.2, "eps": 0.05}, reading="sparse"),
    ],
    "adam": _adams("Adam", _AMSGRAD, _REORDERED, {**_AMSGRAD, **_REORDERED}),
    "adam_fp16": _adams("AdamFP16", {"differentiable": True}),
    "adam_warmup": _adams("AdamWarmup", warmup=5),
    "adam_warmup_cosine_decay": _adams("AdamWarmupCosineDecay", {"total_steps": 5}, warmup=2, total_steps=15),
    "adamax": _adams("Adamax"),
    "ademamix": _adams("AdEMAMix", {**_AMSGRAD, "warmup": 50}, beta3=0.95, alpha=2.5),
    "amsgrad": _adams("AMSGrad"),
    "asgd": [Case("ASGD", _ASGD, {"eta": 0.4, "mu": mu}) for mu in (0.3, 1.0)],
    "base": [Case("SGD", {"lr": 0.3, "maximize": True})],
    "lion": [Case("Lion", {"lr": 0.3, "betas": (0.7, 0.9)})],
    "muon": [
        Case("Muon", {**_MUON, **options}, reading="tensors")
        for options in (
            {},
            {"nesterov": False},
            {"polar_express": True},
            {"eps": 50.0},
            {"adjust_lr_fn": "match_rms_adamw"},
        )
    ],
    "nadam": [
        Case("NAdam", {**_ADAM, "momentum_decay": 0.3}, {"mu_product": r"\prod_{i=1}^{t-1} \mu_i"}, tolerance=2e-6)
    ],
    "noam": _adams("Noam", {"warmup": 0}, warmup=5, d_model=16),
    "radam": _adams("RAdam", _PLAIN, _AMSGRAD, {"degenerated_to_sgd": False}),
    "rmsprop": [
        Case("RMSprop", {**_RMS, "momentum": momentum, "centered": centered})
        for momentum in (0, 0.6)
        for centered in (False, True)
    ],
    "rprop": [Case("Rprop", {"lr": 0.3, "etas": (0.5, 1.2), "step_sizes": (0.4, 1.2)})],
    "sgd": [
        Case("SGD", {"lr": 0.3, **options})
        for options in (
            {},
            {"momentum": 0.7},
            {"momentum": 0.7, "dampening": 0.4},
            {"momentum": 0.7, "nesterov": True},
            {"momentum": 0.7, "moving_average": True},
        )
    ],
    "sophia": [Case("Sophia", {**_ADAM, "rho": 0.8}, reading=reading) for reading in ("recorded", "hessian")],
    "weight_decay": [
        Case("SGD", {"lr": 0.3, "weight_decay": 0.2}),
        *(Case("SGD", {"lr": 0.3, "weight_decay": 0.2, "absolute": absolute}) for absolute in (False, True)),
    ],
}

#: Letters of single pages, by expressions of the code below them.
LETTERS: dict[str, dict[str, str]] = {
    "adagrad": {"s_0": "group['initial_accumulator_value']"},
    "muon": {"X": "x", "s": "scale", r"\delta": "DAMPING if polar_express else 1.0"},
    "sgd": {r"\beta": "group['momentum']"},
    # Between two estimates the curvature does not change.
    "sophia": {"h_t": "state['hessian']", "B": "n_tokens", r"\hat g": "grad"},
}

#: Formulas that are not checked: the page, how the formula begins, and why.
EXCEPTIONS: dict[tuple[str, str], str] = {
    ("adam_fp16", r"\Theta_t \leftarrow \text{Adam}"): "it stands for the whole page of Adam, which is checked itself",
    ("muon", r"o_t \leftarrow U V^\top"): "the line only comes near to it; tests/test_muon.py measures how near",
}

#: Entries of a state that are never negative.
NOT_NEGATIVE = ("sq", "square", "sum", "inf", "delta", "var", "hessian", "step_size")
