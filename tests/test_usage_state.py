"""
What becomes of an optimizer's state: a user edits it, moves it in memory, copies it, saves it from one reader for
another, and takes it to other processes and threads. Training goes on as if nothing had happened.
"""

import copy
import itertools
import multiprocessing
import os
import pickle
import threading
from collections import defaultdict

import pytest
import torch

from optimizers import ASGD, SGD, Adam
from tests import helpers
from tests.helpers import same, same_state
from tests.rules import BY_NAME, CLASS_TWINS, CLASSES, READERS, RULES, pairs

all_classes = pytest.mark.parametrize("rule", CLASSES, ids=str)
rules_by_all_readers = pytest.mark.parametrize(("rule", "reader"), pairs(RULES), ids=str)
classes_by_all_readers = pytest.mark.parametrize(("rule", "reader"), pairs(CLASSES), ids=str)
twins_by_all_readers = pytest.mark.parametrize(("rule", "reader"), pairs(CLASS_TWINS), ids=str)
ways_of_copying = pytest.mark.parametrize(
    "carry", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))], ids=["deepcopy", "pickle"]
)

SHAPES = [(4, 3), ()]
STEPS = 9


def rows(rule):
    """A run's gradients."""
    return helpers.gradients(helpers.params_for(rule, SHAPES), STEPS)


def begun(rule, reader, steps):
    """An optimizer after some steps, and its parameters."""
    ps = helpers.params_for(rule, SHAPES)
    return helpers.run(rule.build(ps, reader), ps, rows(rule)[:steps]), ps


def assert_same_run(one, other):
    """For two optimizers with their parameters."""
    assert same(helpers.values(one[1]), helpers.values(other[1]))
    assert same_state(one[0], other[0])


# ## Edited by the user


def _cleared(optimizer):
    optimizer.state.clear()


def _new(optimizer):
    optimizer.state = defaultdict(dict)


def _popped(optimizer):
    for p in optimizer.param_groups[0]["params"]:
        optimizer.state.pop(p, None)


def _emptied(optimizer):
    for state in optimizer.state.values():
        state.clear()


@classes_by_all_readers
@pytest.mark.parametrize("forget", [_cleared, _new, _popped, _emptied], ids=lambda f: f.__name__.strip("_"))
def test_optimizer_whose_state_is_forgotten_begins_anew(rule, reader, forget):
    optimizer, ps = begun(rule, reader, 3)
    qs = helpers.copies(ps)
    fresh = rule.build(qs, reader)
    forget(optimizer)
    helpers.run(optimizer, ps, rows(rule)[3:6])
    helpers.run(fresh, qs, rows(rule)[3:6])
    assert_same_run((optimizer, ps), (fresh, qs))


@twins_by_all_readers
def test_state_reset_in_place_acts_as_in_torch(rule, reader):
    optimizer, ps = begun(rule, reader, 3)
    qs = helpers.params_for(rule, SHAPES)
    start = helpers.values(qs)
    twin = helpers.run(rule.build_twin(qs), qs, rows(rule)[:3])
    for stepping, params in ((optimizer, ps), (twin, qs)):
        for state in stepping.state.values():
            for value in state.values():
                value.zero_()
        helpers.run(stepping, params, rows(rule)[3:6])
    helpers.assert_as_torch(reader, ps, qs, start, 6)


NOTES = {
    "like the parameter": lambda p: p.detach().clone(),
    "of another shape": lambda p: torch.ones(7),
    "a mask": lambda p: p.detach() > 0,
    "a number": lambda p: 1.5,
    "a string": lambda p: "x",
    "a list": lambda p: [1, 2],
}


@pytest.mark.parametrize(("rule", "reader"), pairs(CLASSES, [*READERS, "default"]), ids=str)
@pytest.mark.parametrize("note", NOTES)
def test_what_a_user_notes_in_the_state_is_kept_and_changes_nothing(rule, reader, note):
    if reader == "fused" and note == "of another shape":
        pytest.skip("a kernel has no place for it; the reader that is chosen then has")
    optimizer, ps = begun(rule, reader, 2)
    notes = [NOTES[note](p) for p in ps]
    for p, value in zip(ps, notes, strict=True):
        optimizer.state[p]["note"] = value
    helpers.run(optimizer, ps, rows(rule)[2:5])
    assert same(helpers.values(ps), helpers.values(begun(rule, reader, 5)[1]))
    assert all(optimizer.state[p]["note"] is value for p, value in zip(ps, notes, strict=True))


class KeepsADiary(SGD):
    """State that is text, and a list that is written in place."""

    def init_state(self, state, group, param):
        state["diary"], state["counts"] = "", []

    def step_param(self, state, group, grad, param):
        super().step_param(state, group, grad, param)
        state["diary"] = state["diary"] + "x"
        state["counts"].append(len(state["counts"]))


def test_what_a_rule_writes_down_in_its_state_is_there_at_the_next_step():
    ps = helpers.params(SHAPES)
    optimizer = helpers.run(KeepsADiary(ps, lr=0.1, **READERS["single"]), ps, helpers.gradients(ps, 3))
    assert [(s["diary"], s["counts"]) for s in optimizer.state.values()] == [("xxx", [0, 1, 2])] * 2


def _by_the_user(optimizer):
    return optimizer.state.values()


def _by_a_state_dict(optimizer):
    return optimizer.state_dict()["state"].values()


@classes_by_all_readers
@pytest.mark.parametrize("part", ["numbers", "tensors"])
@pytest.mark.parametrize("reached", [_by_the_user, _by_a_state_dict], ids=lambda f: f.__name__.strip("_"))
def test_state_whose_memory_was_moved_is_found_at_its_new_place(rule, reader, part, reached):
    """As `share_memory_` does, with which torch hands tensors to other processes."""
    optimizer, ps = begun(rule, reader, 3)
    left = []
    for state in reached(optimizer):
        for name, value in state.items():
            if (name in rule.cls.scalar_state) == (part == "numbers"):
                left.append((value.data, value.data.clone()))
                value.data = value.data.clone()
    helpers.run(optimizer, ps, rows(rule)[3:6])
    assert_same_run((optimizer, ps), begun(rule, reader, 6))
    assert all(same(now, then) for now, then in left)


# ## Copied


@classes_by_all_readers
@ways_of_copying
@pytest.mark.parametrize("steps", [0, 1, 6])
def test_copy_made_at_any_step_goes_on_bitwise(rule, reader, carry, steps):
    # Of the copy of a copy, so that nothing is lost on the way.
    twin = carry(carry(begun(rule, reader, steps)[0]))
    ps = twin.param_groups[0]["params"]
    helpers.run(twin, ps, rows(rule)[steps:])
    assert_same_run((twin, ps), begun(rule, reader, STEPS))


@all_classes
@ways_of_copying
def test_tensor_of_the_state_that_is_copied_along_stays_the_optimizers_own(rule, carry):
    optimizer, ps = begun(rule, "single", 2)
    twin, state = carry((optimizer, dict(optimizer.state[ps[0]])))
    (p, _) = twin.param_groups[0]["params"]
    assert {k: id(v) for k, v in state.items()} == {k: id(v) for k, v in twin.state[p].items()}


@pytest.mark.parametrize(
    ("rule", "one", "other"),
    [(rule, *two) for rule in CLASSES for two in itertools.permutations(rule.readers, 2)],
    ids=str,
)
def test_checkpoint_of_one_reader_goes_on_with_another(rule, one, other):
    optimizer, ps = begun(rule, one, 4)
    resumed = helpers.copies(ps)
    fresh = rule.build(resumed, other)
    fresh.load_state_dict(optimizer.state_dict())
    # The reader is in the group, so it came with the checkpoint.
    fresh.param_groups[0].update({"foreach": None, "fused": None, **READERS[other]})
    helpers.run(fresh, resumed, rows(rule)[4:])
    assert fresh.explain().entries[0].reader == ("single" if rule.matrices else other)
    _, qs = begun(rule, "single", STEPS)
    start = helpers.params_for(rule, SHAPES)
    helpers.assert_as_torch("fused" if "fused" in (one, other) else other, resumed, qs, start, STEPS)


@classes_by_all_readers
def test_checkpoint_with_a_tensor_lr_goes_on_with_a_tensor_of_its_own(rule, reader, tmp_path):
    if reader == "foreach" and issubclass(rule.cls, Adam):
        pytest.skip("torch refuses a tensor lr for Adam with foreach=True, and so do we")
    lr, runs = torch.tensor(0.02, dtype=torch.float64), []
    ps = helpers.params_for(rule, SHAPES)
    optimizer = helpers.run(rule.build(ps, reader, lr=lr), ps, rows(rule)[:3])
    torch.save(optimizer.state_dict(), tmp_path / "checkpoint")
    qs = helpers.copies(ps)
    fresh = rule.build(qs, reader)
    fresh.load_state_dict(torch.load(tmp_path / "checkpoint", weights_only=True))
    for stepping, params in ((optimizer, ps), (fresh, qs)):
        helpers.run(stepping, params, rows(rule)[3:5])
        stepping.param_groups[0]["lr"].fill_(0.005)
        helpers.run(stepping, params, rows(rule)[5:7])
        runs.append((stepping, params))
    assert_same_run(*runs)
    assert fresh.param_groups[0]["lr"] is not lr


# ## In other processes
#
# One process does it all, because it takes seconds to start one.

RUNS = [(rule.name, reader) for rule, reader in pairs(RULES)]


def start(run, steps=3):
    """A run after some steps: an optimizer and its parameters."""
    name, reader = run
    return begun(BY_NAME[name], reader, steps)


def go_on(runs, start, stop):
    for (name, _), (optimizer, ps) in runs.items():
        helpers.run(optimizer, ps, rows(BY_NAME[name])[start:stop])
        # What is handed over or kept has no gradients.
        optimizer.zero_grad()


def keep(folder, name, runs):
    (folder / name).write_bytes(pickle.dumps(runs))


def kept(folder, name):
    return pickle.loads((folder / name).read_bytes())


def in_a_forked_child(work):
    """Do it there, and wait."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def elsewhere(folder, handed):
    """The other process. Three steps are done; what comes of three more, in each way, it keeps under the way's name."""
    torch.set_num_threads(1)
    runs = {}
    for (name, reader), (ps, saved) in torch.load(folder / "checkpoints", weights_only=True).items():
        ps = [p.requires_grad_() for p in ps]
        optimizer = BY_NAME[name].build(ps, reader)
        optimizer.load_state_dict(saved)
        runs[name, reader] = optimizer, ps
    go_on(runs, 3, 6)
    keep(folder, "resumed", runs)
    runs = kept(folder, "pickled")
    go_on(runs, 3, 6)
    keep(folder, "unpickled", runs)
    go_on(handed, 3, 6)
    if hasattr(os, "fork"):
        fork(folder)


def fork(folder):
    runs = {run: start(run) for run in RUNS}
    in_a_forked_child(lambda: go_on(runs, 3, 6) or keep(folder, "forked", runs))
    go_on(runs, 3, 6)
    keep(folder, "stayed", runs)
    for optimizer, ps in runs.values():
        for tensor in (*ps, *(v for state in optimizer.state.values() for v in state.values())):
            tensor.detach().share_memory_()
    # Of nine steps the child takes the seventh and the eighth.
    in_a_forked_child(lambda: go_on(runs, 6, 8))
    go_on(runs, 8, STEPS)
    keep(folder, "shared", runs)


@pytest.fixture(scope="module")
def came_of(tmp_path_factory):
    """What came of a run in each way: a function that gives the optimizer and its parameters."""
    folder = tmp_path_factory.mktemp("elsewhere")
    runs = {run: start(run) for run in RUNS}
    torch.save({k: (helpers.values(ps), o.state_dict()) for k, (o, ps) in runs.items()}, folder / "checkpoints")
    keep(folder, "pickled", runs)
    handed = {(rule.name, reader): begun(rule, reader, 3) for rule, reader in pairs(CLASSES)}
    go_on(handed, 3, 3)
    process = multiprocessing.get_context("spawn").Process(target=elsewhere, args=(folder, handed))
    process.start()
    process.join(120)
    process.kill()
    ways = {path.name: kept(folder, path.name) for path in folder.iterdir() if path.name != "checkpoints"}
    ways["handed"] = handed
    return lambda way, rule, reader: ways[way][rule.name, reader]


@rules_by_all_readers
def test_run_resumed_in_a_new_process_is_the_uninterrupted_one(rule, reader, came_of):
    assert_same_run(came_of("resumed", rule, reader), begun(rule, reader, 6))


@rules_by_all_readers
def test_optimizer_that_is_pickled_for_a_new_process_goes_on_bitwise(rule, reader, came_of):
    assert_same_run(came_of("unpickled", rule, reader), begun(rule, reader, 6))


@classes_by_all_readers
def test_new_process_that_is_handed_an_optimizer_trains_the_one_that_stays(rule, reader, came_of):
    """torch hands over the memory of tensors, not copies."""
    assert_same_run(came_of("handed", rule, reader), begun(rule, reader, 6))


needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")


@needs_fork
@rules_by_all_readers
@pytest.mark.parametrize("way", ["forked", "stayed"])
def test_child_and_parent_both_go_on_bitwise_after_a_fork(rule, reader, way, came_of):
    assert_same_run(came_of(way, rule, reader), begun(rule, reader, 6))


@needs_fork
@rules_by_all_readers
def test_child_and_parent_in_turns_train_what_lies_in_shared_memory(rule, reader, came_of):
    assert_same_run(came_of("shared", rule, reader), begun(rule, reader, 9))


# ## In threads


def test_optimizers_in_threads_step_as_they_do_alone():
    threads = 8
    runs = {run: start(run, 0) for run in RUNS}
    together, errors = threading.Barrier(threads), []

    def work(mine):
        together.wait()
        try:
            go_on({run: runs[run] for run in mine}, 0, STEPS)
        except BaseException as error:
            errors.append(error)

    workers = [threading.Thread(target=work, args=(RUNS[i::threads],)) for i in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert errors == []
    for run in RUNS:
        assert_same_run(runs[run], start(run, STEPS))


def test_number_of_a_state_that_begins_as_the_learning_rate_is_not_the_tensor_of_the_group():
    lr = torch.tensor(0.1)
    ps = helpers.params(dtype=torch.float32)
    optimizer = helpers.run(ASGD(ps, lr=lr, lambd=0.5), ps, helpers.gradients(ps, 3))
    assert lr.item() == torch.tensor(0.1).item()
    assert all(optimizer.state[p]["eta"].item() < 0.1 for p in ps)
