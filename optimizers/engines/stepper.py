"""
---
title: The stepper
summary: Who steps, which reader runs the rule, and why.
---

# The stepper

A plan says which reader runs the rule for which cohorts. It is made at the first step and holds until something
changes: a parameter is added, a gradient is sparse, a state is loaded, or other gradients are missing than before and
no [launch](launch.html) holds their parameters. At each step first every job makes itself
ready, which writes nothing; only then do they run. So a step that can't be done is not done by half.
"""

from __future__ import annotations

import logging
from functools import partial
from operator import is_
from typing import Any

import torch
from torch import Tensor

from optimizers.engines.c_look import gradient_finder
from optimizers.engines.cohort import LAZY, Cohort, Counts, adopt, gather, gather_absent, states_of, wish
from optimizers.engines.compiler import NoCompiler
from optimizers.engines.eager import step_foreach, step_single
from optimizers.engines.functional import step_functional
from optimizers.engines.fused import LAUNCHES, FusedJob
from optimizers.engines.program import Unrecordable
from optimizers.engines.recorder import Tape
from optimizers.engines.report import Report, report_of
from optimizers.engines.scaling import Scaling
from optimizers.engines.shard import local
from optimizers.engines.state import group_numbers, hypers_on
from optimizers.engines.triton_launch import is_capturing

_log = logging.getLogger("optimizers")
# What was said needs no saying again, also by the thousandth optimizer of a class.
_told: set[tuple[type, str]] = set()


class EagerJob:
    """## A cohort that the single or the foreach reader steps"""

    on_device = grows = False

    def __init__(self, rule: Any, cohort: Cohort, reader: str, reason: str) -> None:
        self.cohorts, self.cohort, self.reader, self.reason = [cohort], cohort, reader, reason
        self._entries = set(cohort.states[0])
        self._counts: Counts | None = None
        self._scale: float | None = None
        self._wish = wish(rule, cohort)
        self.params, self._tape, self._readable = cohort.params, tape_of(cohort), True

    def ready(self, rule: Any, scaling: Scaling | None) -> bool:
        """### False if something is not as it was"""
        if self._counts is None:
            self._counts = Counts(self.cohort)
        if any(p.grad is None or p.grad.is_sparse != self.cohort.sparse for p in self.cohort.params):
            return False
        if any(state.keys() != self._entries for state in self.cohort.states):
            return False
        if self._readable:
            try:
                read_once(rule, self.cohort, self._tape)
            except Unrecordable:
                if self.reader == "foreach":
                    raise
                self._readable = False
        self._scale = None if scaling is None else scaling.number
        return self._counts.unchanged() and wish(rule, self.cohort) == self._wish

    def run(self, rule: Any) -> bool:
        """### Step. False if the plan must be made anew, because the states have new entries"""
        assert self._counts is not None
        if self.cohort.shared:
            self._counts.refresh()
        step = {"single": step_single, "foreach": step_foreach, "functional": step_functional}[self.reader]
        with torch.set_grad_enabled(self.reader == "functional"):
            scalars = step(rule, self.cohort, self._scale)
        self._counts.advance(scalars)
        if self.cohort.states[0].keys() == self._entries:
            return True
        adopt(rule, self.cohorts)
        return False

    def counts(self) -> list[int]:
        """### The steps that the cohort has taken"""
        return [int(self.cohort.scalars["step"])] if "step" in self.cohort.scalars else []


def tape_of(cohort: Cohort) -> Tape:
    """A tape for the readings of a cohort."""
    return Tape(("param", "grad", *cohort.names))


def read_once(rule: Any, cohort: Cohort, tape: Tape) -> None:
    """
    ### Read the rule for nothing but to see what is wrong before anything has moved

    Raises `Unrecordable` where the rule does not keep to the vocabulary of the kernels, which lists have too, and what
    the rule itself raises, for a bad value in a group say.
    """
    tape.rewind()
    state = tape.state({**cohort.others, **cohort.next_scalars()})
    rule.update_param(state, group_numbers(rule.param_groups[cohort.group]), tape.grad, tape.param)


class Plan:
    """## What a step does"""

    def __init__(self, rule: Any, jobs: list[Any], why_host: str = "", moves: Any = None, scaled: bool = False) -> None:
        self.jobs = jobs
        # Groups whose numbers may become the device's, by a switch or a tensor that is put in them.
        self._moves, self._scaled, self._seen = moves, scaled, [object()]
        movable = [] if why_host else [c for job in jobs for c in getattr(job, "movable", ())]
        self._watched = [(cohort.group, cohort.params[0]) for cohort in movable]
        #: Whether all numbers are the device's, so that nothing has to be looked at here.
        self.on_device = bool(jobs) and all(job.on_device for job in jobs)
        self.grows = any(job.grows for job in jobs)
        devices = [local(p).device for job in jobs if not job.on_device for c in job.cohorts for p in c.params]
        # Steps with numbers of the host can't go into a graph of this device.
        self._not_in_graphs_of, self._why_host = next((d for d in devices if d.type == "cuda"), None), why_host
        self._params = [p for g in rule.param_groups for p in g["params"]]
        stepping = {id(p) for job in jobs for p in job.params}
        idle = [p for p in self._params if id(p) not in stepping]
        fused = any(hasattr(job, "launches") for job in jobs)
        self._has_idle_gradient = gradient_finder(idle, from_c=fused) if idle else None
        self._sizes = [len(g["params"]) for g in rule.param_groups]
        self._states = list(states_of(rule).values())

    def ready(self, rule: Any, scaling: Scaling | None) -> bool:
        """### Whether the plan holds for this step; every job is then prepared"""
        if self._not_in_graphs_of is not None:
            self.refuse_capture(rule)
        groups = rule.param_groups
        params = groups[0]["params"] if len(groups) == 1 else [p for g in groups for p in g["params"]]
        if len(params) != len(self._params) or not all(map(is_, params, self._params)):
            return False
        if len(groups) > 1 and [len(g["params"]) for g in groups] != self._sizes:
            return False
        if self._has_idle_gradient is not None and self._has_idle_gradient():
            return False
        if rule._state_is_known:
            states = states_of(rule).values()
            if len(states) != len(self._states) or not all(map(is_, states, self._states)):
                return False
        if self._watched and ((scaling is not None) != self._scaled or self._may_move(groups)):
            return False
        for job in self.jobs:  # noqa: SIM110 - a generator takes its time
            if not job.ready(rule, scaling):
                return False
        return True

    def refuse_capture(self, rule: Any) -> None:
        """### Raise `RuntimeError` where a graph would repeat numbers of the host"""
        if self._not_in_graphs_of is not None and is_capturing(self._not_in_graphs_of):
            advice = "set capturable=True in every group, and fused=None or True, and take a step before the capture"
            raise RuntimeError(
                f"a CUDA graph would repeat the numbers of this one step of {type(rule).__name__}: "
                + (self._why_host or advice)
            )

    def _may_move(self, groups: list[dict[str, Any]]) -> bool:
        values = [value for index, _ in self._watched for value in groups[index].values()]
        if len(values) == len(self._seen) and all(map(is_, values, self._seen)):
            return False
        self._seen = values
        return any(self._moves(groups[index], param) for index, param in self._watched)

    def run(self, rule: Any) -> bool:
        """### Step. False if the plan does not hold for the next one"""
        if len(self.jobs) == 1:
            held: bool = self.jobs[0].run(rule)
            return held
        # Every job runs, whatever the one before it says.
        held_all = [job.run(rule) for job in self.jobs]
        return all(held_all)


class Stepper:
    """## What an optimizer hands its step to"""

    def __init__(self) -> None:
        self._plan: Plan | None = None
        # Readings of the rule, kept from plan to plan.
        self._tapes: dict[Any, Tape] = {}
        self._readings: dict[Any, Any] = {}
        #: Why numbers can't be the device's, if that was tried.
        self._why_host = ""

    def step(self, rule: Any) -> None:
        """
        ### Move every parameter that has a gradient

        torch's `GradScaler` sets `grad_scale` and `found_inf` on an optimizer that says it can do with them. A step
        with an infinite gradient is not done at all.
        """
        plan = self._plan
        scaling = None
        # Asking for what isn't there takes longer than to look whether it is.
        own = rule.__dict__
        if ("found_inf" in own or "grad_scale" in own) and rule._step_supports_amp_scaling:
            scaling = Scaling.of(rule)
            if scaling is not None and (plan is None or not plan.on_device):
                # To look is to wait, which a capture does not allow.
                _refuse_capture(rule) if plan is None else plan.refuse_capture(rule)
                if scaling.is_skipped:
                    return
        # Whatever is interrupted, by an error or by hand, is not to be trusted.
        self._plan = None
        try:
            if plan is not None and plan.ready(rule, scaling):
                if plan.run(rule):
                    self._plan = plan
                return
        except (Unrecordable, NoCompiler):
            pass
        plan = self._make(rule, scaling)
        if scaling is not None and (plan.grows or not plan.on_device) and scaling.is_skipped:
            # What a step adds to the states is not there if the device leaves it out.
            return
        if not plan.ready(rule, scaling):
            raise RuntimeError("the parameters, gradients or states changed while the step was prepared")
        self._plan = plan if plan.run(rule) else None

    @torch.no_grad()
    def _make(self, rule: Any, scaling: Scaling | None = None, dry: bool = False) -> Plan:
        """### Look at everything, and choose a reader for each cohort"""
        if not dry:
            _refuse_capture(rule)
        cohorts = gather(rule, dry, partial(self._is_on_device, scaling is not None))
        if not dry:
            adopt(rule, cohorts)
            cohorts += gather_absent(rule, _may_wait)
        jobs: list[FusedJob | EagerJob] = []
        for everyone in _together(rule, cohorts):
            together = [cohort for cohort in everyone if not cohort.absent]
            if not together:
                continue
            group, reason = rule.param_groups[together[0].group], _unwanted(rule.param_groups[together[0].group])
            reason = reason or together[0].obstacle
            if not reason:
                try:
                    jobs.append(self._fused(rule, everyone, scaling, dry))
                    continue
                except (Unrecordable, NoCompiler) as error:
                    reason = str(error)
                if together[0].on_device:
                    self._why_host = reason
                    return self._make(rule, scaling, dry)
            if group["fused"]:
                raise RuntimeError(
                    f"fused=True can't be had: {reason}. Leave `fused` out and the fastest reader that works is taken"
                )
            jobs += [self._eager(rule, cohort, reason) for cohort in together]
        scaled = scaling is not None
        return Plan(rule, jobs, self._why_host, partial(self._is_on_device, scaled), scaled)

    def _fused(self, rule: Any, cohorts: list[Cohort], scaling: Scaling | None, dry: bool) -> Any:
        """### A job for kernels"""
        if not cohorts[0].on_device:
            return FusedJob(rule, cohorts, self._tapes, None if scaling is None else scaling.number, dry)
        # Symbols take half a second to import.
        from optimizers.engines.device_launch import DeviceJob

        scaled = scaling is not None and scaling.grad_scale is not None
        return DeviceJob(rule, [c for c in cohorts if not c.absent], self._readings, scaled, dry)

    def _is_on_device(self, scaled: bool, group: dict[str, Any], param: Tensor) -> bool:
        """### Whether the numbers of a step are the device's: for a graph, AMP, or a learning rate that is there"""
        device = local(param).device
        if self._why_host or device.type not in LAUNCHES or not LAUNCHES[device.type].has_numbers or _unwanted(group):
            return False
        return scaled or bool(group["capturable"]) or bool(hypers_on(group, device))

    def _eager(self, rule: Any, cohort: Cohort, reason: str) -> EagerJob:
        group, reader = rule.param_groups[cohort.group], "single"
        if group["differentiable"]:
            reader = "functional"
        elif group["foreach"] is not False and not (cohort.sparse or cohort.shared or cohort.obstacle.endswith(LAZY)):
            try:
                read_once(rule, cohort, tape_of(cohort))
                reader = "foreach"
            except Unrecordable as error:
                reason = str(error)
        if reason != _unwanted(group) and (type(rule), reason) not in _told:
            _told.add((type(rule), reason))
            _log.warning("%s steps by the %s reader: %s", type(rule).__name__, reader, reason)
        return EagerJob(rule, cohort, reader, reason)

    # ## Looking

    def _plan_to_show(self, rule: Any) -> Plan:
        return self._plan or self._make(rule, dry=True)

    def explain(self, rule: Any) -> Report:
        """### Which reader runs what, and why"""
        return report_of(type(rule).__name__, self._plan_to_show(rule).jobs)

    def kernel_source(self, rule: Any) -> str:
        """### The source of every kernel in use"""
        jobs = self._plan_to_show(rule).jobs
        sources = dict.fromkeys(launch.source for job in jobs for launch in getattr(job, "launches", ()))
        return "\n".join(sources)


def _refuse_capture(rule: Any) -> None:
    """A graph can't have what a step prepares for all later ones."""
    if any(map(is_capturing, {local(p).device for group in rule.param_groups for p in group["params"]})):
        raise RuntimeError(
            f"{type(rule).__name__} is not ready to be captured in a CUDA graph: take a step or two before, with "
            "gradients for the same parameters, on a side stream, as torch's notes on CUDA graphs say"
        )


def _may_wait(group: dict[str, Any], param: Tensor) -> bool:
    """Whether a launch could hold a parameter that has no gradient."""
    device = local(param).device.type
    return not _unwanted(group) and device in LAUNCHES and LAUNCHES[device].takes_absent


def _unwanted(group: dict[str, Any]) -> str:
    """Why a group is not for kernels by its own wish, or nothing."""
    if group["differentiable"]:
        return "differentiable=True"
    if group["fused"] is False:
        return "fused=False"
    return "foreach=True" if group["foreach"] and not group["fused"] else ""


def _together(rule: Any, cohorts: list[Cohort]) -> list[list[Cohort]]:
    """Cohorts that one job may take: of the same kind and with the same wishes."""
    kinds: dict[Any, list[Cohort]] = {}
    for cohort in cohorts:
        kinds.setdefault((cohort.kind, wish(rule, cohort)), []).append(cohort)
    return list(kinds.values())
