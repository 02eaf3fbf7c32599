"""
The table of rules. A rule joins by a row, and every shared property is tested for it with every reader.

`READERS` are the ways of running a rule, by the arguments that choose them. `EXACT` are those whose arithmetic is
that of torch's for-loop, operation by operation; the others may differ by `ULPS_PER_STEP` in each step. What no kernel
takes (gaps in memory, sparse gradients, a parameter that is there twice) is for `UNDEMANDING` readers.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from inspect import signature
from math import prod
from typing import Any

import numpy as np
import torch

from optimizers import (
    ASGD,
    SGD,
    AdaBelief,
    Adadelta,
    Adagrad,
    Adam,
    Adamax,
    AdamFP16,
    AdamW,
    AdamWarmup,
    AdamWarmupCosineDecay,
    AdEMAMix,
    AMSGrad,
    Lion,
    Muon,
    NAdam,
    Noam,
    RAdam,
    RMSprop,
    Rprop,
    Sophia,
    WeightDecay,
)
from tests import reference

READERS: dict[str, dict[str, Any]] = {
    "single": {"foreach": False, "fused": False},
    "foreach": {"foreach": True},
    "fused": {"fused": True},
}
UNDEMANDING = ["single", "foreach", "default"]
EXACT = {"single", "foreach"}
ULPS_PER_STEP = 2.0


@dataclass(frozen=True)
class Rule:
    """
    A rule with its options. `reference(theta, grads)` is the path in float64; `twin` is torch's class, or None where
    torch has no such option. `precision` is how far, of its movement, numbers that are kept in fewer digits, as in
    torch, may take a float64 parameter from the formula. A rule for `matrices` takes real ones only, and multiplies
    them: there is no kernel for that, and no differentiable step.
    """

    name: str
    cls: type[torch.optim.Optimizer]
    kwargs: dict[str, Any]
    reference: Callable[..., Any] = field(repr=False)
    twin: type[torch.optim.Optimizer] | None = None
    precision: float = 0.0
    matrices: bool = False

    @property
    def readers(self):
        """Those of `READERS` that take it."""
        return [reader for reader in READERS if reader != "fused" or not self.matrices]

    def takes(self, dtype):
        return not (self.matrices and dtype.is_complex)

    def shape(self, shape):
        """A shape as the rule takes it: all but the first dimension of a matrix are its columns, at least one."""
        if not self.matrices:
            return tuple(shape)
        rows, *others = shape or (1,)
        return rows, max(1, prod(others))

    def parameters(self, network):
        """Those of a network's parameters that it takes."""
        return [p for p in network.parameters() if self.shape(p.shape) == p.shape]

    def build(self, params, reader="single", **changes):
        """Our optimizer, run by `reader`; by "default" it chooses for itself."""
        return self.cls(params, **{**self.kwargs, **READERS.get(reader, {}), **changes})

    def build_twin(self, params, **changes):
        """torch's optimizer, run by its for-loop."""
        loop = {k: False for k in ("foreach", "fused") if k in signature(self.twin).parameters}
        return self.twin(params, **{**self.kwargs, **loop, **changes})

    def __str__(self):
        return self.name


def pairs(rules, readers=READERS):
    """Rules with, of these readers, those that take each."""
    return [(rule, reader) for rule in rules for reader in readers if reader in {*rule.readers, "default"}]


def _row(name, cls, formula, twin=None, *, precision=0.0, matrices=False, ours=None, paper=None, **common):
    """`common` are arguments with the same name in our class and in the formula, `ours` and `paper` are the others."""
    paths = partial(formula, **common, **(paper or {}))
    return Rule(name, cls, {**common, **(ours or {})}, paths, twin, precision, matrices)


_adam = partial(_row, cls=Adam, formula=reference.adam)
_adamw = partial(_row, cls=AdamW, formula=reference.adam)
_sgd = partial(_row, cls=SGD, formula=reference.sgd)
_rmsprop = partial(_row, cls=RMSprop, formula=reference.rmsprop)
_nadam = partial(_row, cls=NAdam, formula=reference.nadam, precision=1e-6)
_adamax = partial(_row, cls=Adamax, formula=reference.adamax)
_adagrad = partial(_row, cls=Adagrad, formula=reference.adagrad)
_adadelta = partial(_row, cls=Adadelta, formula=reference.adadelta)
_rprop = partial(_row, cls=Rprop, formula=reference.rprop)
_asgd = partial(_row, cls=ASGD, formula=reference.asgd, precision=1e-6)
_radam = partial(_row, cls=RAdam, formula=reference.radam)
_belief = partial(_row, cls=AdaBelief, formula=reference.radam)
_scheduled = partial(_row, formula=reference.adam)
_lion = partial(_row, cls=Lion, formula=reference.lion)
_mix = partial(_row, cls=AdEMAMix, formula=reference.ademamix)
_sophia = partial(_row, cls=Sophia, formula=reference.sophia)
_T = torch.optim
_muon = partial(_row, cls=Muon, formula=reference.muon, matrices=True)
_torchs_muon = partial(_muon, twin=getattr(_T, "Muon", None))

_REORDERED_MAX = {"reordered": True, "amsgrad": True}


def _cosine(t):
    if t < 5:
        return 0.02 * t / 5
    return 0.02 * max(0.1, 0.5 + 0.5 * np.cos(np.pi * min(1, (t - 5) / 30)))


RULES = [
    _adam(name="adam", twin=_T.Adam),
    _adam(name="adam-betas-eps", twin=_T.Adam, lr=0.02, betas=(0.7, 0.95), eps=1e-3),
    _adam(name="adam-beta1-zero", twin=_T.Adam, lr=0.02, betas=(0.0, 0.95)),
    _adam(name="adam-amsgrad", twin=_T.Adam, lr=0.02, betas=(0.9, 0.9), amsgrad=True),
    _adam(name="adam-l2", twin=_T.Adam, lr=0.02, weight_decay=0.1),
    _adam(name="adam-maximize-l2", twin=_T.Adam, lr=0.02, weight_decay=0.1, maximize=True),
    _adam(
        name="adam-decoupled",
        twin=_T.Adam,
        lr=0.02,
        weight_decay=0.1,
        ours={"decoupled_weight_decay": True},
        paper={"decay": reference.DECOUPLED},
    ),
    _adam(
        name="adam-absolute",
        lr=0.02,
        ours={"weight_decay": WeightDecay(0.01, absolute=True)},
        paper={"weight_decay": 0.01, "decay": reference.ABSOLUTE},
    ),
    _adam(name="adam-optimized", lr=0.02, eps=1e-3, ours={"optimized_update": True}, paper={"reordered": True}),
    _adam(
        name="adam-optimized-amsgrad",
        lr=0.02,
        betas=(0.9, 0.9),
        amsgrad=True,
        ours={"optimized_update": True},
        paper={"reordered": True},
    ),
    _adamw(name="adamw", twin=_T.AdamW, paper={"weight_decay": 0.01, "decay": reference.DECOUPLED}),
    _adamw(
        name="adamw-amsgrad-maximize",
        twin=_T.AdamW,
        lr=0.02,
        betas=(0.9, 0.9),
        weight_decay=0.1,
        amsgrad=True,
        maximize=True,
        paper={"decay": reference.DECOUPLED},
    ),
    _adamw(
        name="adamw-optimized",
        lr=0.02,
        weight_decay=0.1,
        ours={"optimized_update": True},
        paper={"reordered": True, "decay": reference.DECOUPLED},
    ),
    _sgd(name="sgd", twin=_T.SGD),
    _sgd(name="sgd-maximize-l2", twin=_T.SGD, lr=0.1, weight_decay=0.1, maximize=True),
    _sgd(name="sgd-momentum", twin=_T.SGD, lr=0.1, momentum=0.9),
    _sgd(name="sgd-dampening-l2", twin=_T.SGD, lr=0.1, momentum=0.9, dampening=0.3, weight_decay=0.1),
    _sgd(name="sgd-nesterov", twin=_T.SGD, lr=0.1, momentum=0.9, nesterov=True),
    _sgd(name="sgd-nesterov-l2", twin=_T.SGD, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.1),
    _sgd(
        name="sgd-decoupled",
        lr=0.1,
        momentum=0.9,
        ours={"weight_decay": WeightDecay(0.1)},
        paper={"weight_decay": 0.1, "decay": reference.DECOUPLED},
    ),
    _row(
        "sgd-moving-average",
        SGD,
        reference.moving_average_sgd,
        lr=0.1,
        momentum=0.9,
        ours={"moving_average": True},
    ),
    _rmsprop(name="rmsprop", twin=_T.RMSprop),
    _rmsprop(name="rmsprop-eps-l2-maximize", twin=_T.RMSprop, eps=1e-3, weight_decay=0.1, maximize=True),
    _rmsprop(name="rmsprop-momentum", twin=_T.RMSprop, alpha=0.9, momentum=0.9),
    _rmsprop(name="rmsprop-centered", twin=_T.RMSprop, alpha=0.9, centered=True),
    _rmsprop(
        name="rmsprop-centered-momentum-l2", twin=_T.RMSprop, alpha=0.9, momentum=0.9, centered=True, weight_decay=0.1
    ),
    _rmsprop(
        name="rmsprop-absolute",
        ours={"weight_decay": WeightDecay(0.01, absolute=True)},
        paper={"weight_decay": 0.01, "decay": reference.ABSOLUTE},
    ),
    _nadam(name="nadam", twin=_T.NAdam),
    _nadam(name="nadam-eps-l2-maximize", twin=_T.NAdam, lr=0.02, eps=1e-3, weight_decay=0.1, maximize=True),
    _nadam(
        name="nadam-decoupled",
        twin=_T.NAdam,
        lr=0.02,
        betas=(0.8, 0.95),
        momentum_decay=0.1,
        weight_decay=0.1,
        ours={"decoupled_weight_decay": True},
        paper={"decay": reference.DECOUPLED},
    ),
    _adamax(name="adamax", twin=_T.Adamax),
    _adamax(name="adamax-betas-eps-l2", twin=_T.Adamax, lr=0.02, betas=(0.7, 0.9), eps=1e-3, weight_decay=0.1),
    _adamax(
        name="adamax-decoupled-maximize",
        lr=0.02,
        maximize=True,
        ours={"weight_decay": WeightDecay(0.1)},
        paper={"weight_decay": 0.1, "decay": reference.DECOUPLED},
    ),
    _adagrad(name="adagrad", twin=_T.Adagrad),
    _adagrad(
        name="adagrad-start-decay-l2",
        twin=_T.Adagrad,
        lr=0.05,
        eps=1e-3,
        lr_decay=0.1,
        initial_accumulator_value=0.3,
        weight_decay=0.1,
        maximize=True,
    ),
    _adadelta(name="adadelta", twin=_T.Adadelta),
    _adadelta(name="adadelta-rho-eps-l2", twin=_T.Adadelta, lr=0.5, rho=0.5, eps=1e-3, weight_decay=0.1, maximize=True),
    _rprop(name="rprop", twin=_T.Rprop),
    _rprop(name="rprop-etas-sizes", twin=_T.Rprop, lr=0.02, etas=(0.3, 1.7), step_sizes=(5e-3, 0.05), maximize=True),
    _asgd(name="asgd", twin=_T.ASGD),
    _asgd(name="asgd-maximize", twin=_T.ASGD, lr=0.05, maximize=True),
    _asgd(name="asgd-averaging-l2", twin=_T.ASGD, lr=0.05, lambd=0.1, alpha=0.5, t0=5, weight_decay=0.1),
    _row("amsgrad", AMSGrad, reference.adam, _T.Adam, lr=0.02, betas=(0.9, 0.9), amsgrad=True),
    _row("amsgrad-optimized", AMSGrad, reference.adam, lr=0.02, ours={"optimized_update": True}, paper=_REORDERED_MAX),
    _radam(name="radam", twin=_T.RAdam),
    _radam(name="radam-betas-eps-l2", twin=_T.RAdam, lr=0.02, betas=(0.7, 0.95), eps=1e-3, weight_decay=0.1),
    _radam(
        name="radam-decoupled",
        twin=_T.RAdam,
        lr=0.02,
        weight_decay=0.1,
        maximize=True,
        ours={"decoupled_weight_decay": True},
        paper={"decay": reference.DECOUPLED},
    ),
    _radam(
        name="radam-plain-amsgrad",
        lr=0.02,
        betas=(0.9, 0.9),
        amsgrad=True,
        ours={"optimized_update": False},
        paper={"reordered": False},
    ),
    _belief(name="adabelief", lr=0.02, eps=1e-16, paper={"belief": True}),
    _belief(
        name="adabelief-amsgrad-decoupled",
        lr=0.02,
        betas=(0.9, 0.9),
        eps=1e-3,
        amsgrad=True,
        ours={"weight_decay": WeightDecay(0.1), "degenerate_to_sgd": False},
        paper={"belief": True, "weight_decay": 0.1, "decay": reference.DECOUPLED, "degenerated_to_sgd": False},
    ),
    _belief(
        name="adabelief-plain",
        lr=0.02,
        eps=1e-8,
        rectify=False,
        ours={"optimized_update": False},
        paper={"belief": True, "reordered": False},
    ),
    _scheduled(
        name="adam-warmup",
        cls=AdamWarmup,
        ours={"lr": 0.02, "warmup": 10, "weight_decay": WeightDecay(0.1)},
        paper={"schedule": lambda t: 0.02 * min(1, t / 10), "weight_decay": 0.1, "decay": reference.DECOUPLED},
    ),
    _scheduled(
        name="adam-warmup-cosine",
        cls=AdamWarmupCosineDecay,
        ours={"lr": 0.02, "warmup": 5, "total_steps": 35},
        paper={"schedule": _cosine},
    ),
    _scheduled(
        name="noam",
        cls=Noam,
        eps=1e-9,
        betas=(0.9, 0.98),
        ours={"lr": 2.0, "warmup": 20, "d_model": 64},
        paper={"schedule": lambda t: 2 / 8 * min(t**-0.5, t * 20**-1.5)},
    ),
    _row("adam-fp16", AdamFP16, reference.adam),
    _row(
        "adam-fp16-amsgrad-decoupled",
        AdamFP16,
        reference.adam,
        lr=0.02,
        betas=(0.9, 0.9),
        amsgrad=True,
        ours={"weight_decay": WeightDecay(0.1)},
        paper={"weight_decay": 0.1, "decay": reference.DECOUPLED},
    ),
    _lion(name="lion"),
    _lion(name="lion-betas-decay-maximize", lr=0.01, betas=(0.8, 0.95), weight_decay=0.1, maximize=True),
    _mix(name="ademamix"),
    _mix(name="ademamix-warmup-l2", lr=0.01, eps=1e-3, beta3=0.999, alpha=2.0, warmup=30, weight_decay=0.1),
    _sophia(name="sophia"),
    _sophia(name="sophia-eps-rho-decay", lr=0.01, betas=(0.8, 0.9), eps=0.5, rho=0.1, weight_decay=0.1),
    # A precision is up to twice the largest distance of 20 seeds, shapes up to 64x33, after 1, 4, 12 and 50 steps.
    _torchs_muon(name="muon", precision=0.1),
    _torchs_muon(
        name="muon-plain-momentum", precision=0.1, lr=0.02, momentum=0.5, nesterov=False, adjust_lr_fn="original"
    ),
    _torchs_muon(
        name="muon-match-rms", precision=0.05, lr=0.02, weight_decay=0.3, ns_steps=3, adjust_lr_fn="match_rms_adamw"
    ),
    _torchs_muon(name="muon-coefficients-eps", precision=0.02, ns_coefficients=(2.0, -1.5, 0.5), eps=0.3),
    _muon(name="muon-polar-express", precision=0.035, ns_steps=6, polar_express=True),
]

BY_NAME = {rule.name: rule for rule in RULES}
TWINS = [rule for rule in RULES if rule.twin]

#: One row for each class, with state wherever the class has any, for what does not depend on the options.
CLASSES = [
    BY_NAME[name]
    for name in (
        "adam-betas-eps",
        "adamw",
        "sgd-momentum",
        "rmsprop-momentum",
        "nadam",
        "adamax",
        "adagrad",
        "adadelta",
        "rprop",
        "asgd-averaging-l2",
        "amsgrad",
        "radam",
        "adabelief",
        "adam-warmup",
        "adam-warmup-cosine",
        "noam",
        "adam-fp16",
        "lion",
        "ademamix-warmup-l2",
        "sophia",
        "muon",
    )
]

#: Those of them that torch has too.
CLASS_TWINS = [rule for rule in CLASSES if rule.twin]
