"""
Many processes train as one: every rule under DDP, FSDP2, tensor parallelism and ZeRO, and their checkpoints.

Starting processes is what takes the time. So a topic is started once for all rules, and its fixture is what came of it.
The processes are forks of one that has loaded torch, where the system has forks.
"""

import functools
import multiprocessing
import time

import pytest
import torch

from tests import distributed_workers as workers
from tests import helpers
from tests.distributed_workers import DTYPES, FORMS, LAYOUTS, LIMIT, STEPS, Net, decays
from tests.helpers import assert_within, same, values
from tests.rules import BY_NAME, CLASSES, READERS

pytestmark = pytest.mark.skipif(
    not torch.distributed.is_available() or "forkserver" not in multiprocessing.get_all_start_methods(),
    reason="torch is without torch.distributed, or the system without forks",
)

#: By how many ULP of float64 a movement may differ from that in one process. Gradients are summed in another order.
ULPS = 100

# Whole networks are trained here, which are not matrices alone.
FOR_NETWORKS = [rule for rule in CLASSES if not rule.matrices]
all_classes = pytest.mark.parametrize("rule", FOR_NETWORKS, ids=str)
all_twins = pytest.mark.parametrize("rule", [rule for rule in FOR_NETWORKS if rule.twin], ids=str)


# ## Processes


class Outcome:
    """A topic done by `world` processes, which have ended, one way or another."""

    def __init__(self, topic, world, folder, *args):
        self.world, self.folder = world, folder
        context = multiprocessing.get_context("forkserver")
        # FSDP2 would import the compiler in each process, which takes a second.
        context.set_forkserver_preload([workers.__name__, "torch._dynamo"])
        starts = [(topic, rank, world, folder, *args) for rank in range(world)]
        processes = [context.Process(target=workers.work, args=start, daemon=True) for start in starts]
        try:
            for process in processes:
                process.start()
            # A process that hangs ends itself after LIMIT, and tells where it was.
            end = time.monotonic() + LIMIT + 10
            for process in processes:
                process.join(max(0, end - time.monotonic()))
            self.codes = [process.exitcode for process in processes]
        finally:
            for process in processes:
                if process.pid is not None:
                    process.kill()
                    process.join()

    def of(self, rule):
        """What each process has to say about a rule."""
        files = [self.folder / f"{rule}.{rank}" for rank in range(self.world)]
        if not all(file.exists() for file in files):
            logs = [(self.folder / f"{rank}.log").read_text() for rank in range(self.world)]
            pytest.fail("\n".join([f"the processes ended with {self.codes} before {rule} was done", *logs]))
        results = [torch.load(file, weights_only=True) for file in files]
        return [completed(result) for result in results]


def completed(result):
    """A result, unless it is how a process failed."""
    assert isinstance(result, dict), result
    return result


def topic(name, world):
    @pytest.fixture(scope="module")
    def outcome(tmp_path_factory):
        return Outcome(name, world, tmp_path_factory.mktemp(name))

    return outcome


ddp = topic("ddp", 2)
layouts = topic("layouts", 4)
tensors = topic("tensors", 2)
grid = topic("grid", 4)
state_dicts = topic("state_dicts", 2)


@pytest.fixture(scope="module", params=[2, 4], ids="{} processes".format)
def fsdp(request, tmp_path_factory):
    return Outcome("fsdp", request.param, tmp_path_factory.mktemp("fsdp"))


@pytest.fixture(scope="module", params=["zero", "zero_buckets"])
def zero(request, tmp_path_factory):
    return Outcome(request.param, 2, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def thirds(tmp_path_factory):
    """A run in three parts, by 2, 4 and 2 processes."""
    folder = tmp_path_factory.mktemp("thirds")
    outcomes = []
    for stage, world in enumerate((2, 4, 2)):
        (folder / str(stage)).mkdir()
        outcomes.append(Outcome("resharded", world, folder / str(stage), stage))
    return outcomes


# ## One process


@functools.cache
def alone(name, steps=STEPS):
    """The parameters that one process finds from the whole batches."""
    model = Net()
    workers.train(model, workers.build(BY_NAME[name], model), range(steps))
    return values(model.parameters())


def assert_moved_alike(got, want):
    start = values(Net().parameters())
    assert not same(want, start)
    assert_within(ULPS, got, want, start)


def of_twin(result):
    """The parameters that torch's class finds; it does not run everywhere where ours do."""
    if isinstance(result, str) and "/torch/optim/" in result:
        pytest.skip("torch's class can't do it")
    return completed(result)["parameters"]


# ## Results


@all_classes
def test_ddp_moves_as_one_process_on_the_whole_batch(rule, ddp):
    for result in ddp.of(rule):
        assert_moved_alike(result["parameters"], alone(rule.name))


@all_classes
def test_fsdp_moves_as_one_process(rule, fsdp):
    for result in fsdp.of(rule):
        assert_moved_alike(result["parameters"], alone(rule.name))


@all_twins
def test_fsdp_moves_as_torchs_class_under_it(rule, fsdp):
    for result in fsdp.of(rule):
        assert_moved_alike(result["parameters"], of_twin(result["twin"]))


@all_classes
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_distributed_tensors_move_bit_for_bit_as_whole_ones(rule, dtype, layouts):
    for result in layouts.of(rule):
        for name, (shape, *_) in LAYOUTS.items():
            got = completed(result[f"{dtype}, {name}"])
            param = helpers.params([shape], dtype)
            optimizer = rule.build(param)
            for reader, grads in zip(got["readers"], helpers.gradients(param, STEPS), strict=True):
                optimizer.param_groups[0].update({"foreach": None, "fused": None, **READERS[reader]})
                helpers.step(optimizer, param, grads)
            assert same(got["value"], param[0]), name
            # So autograd sees that it was written.
            assert got["version"] >= STEPS, name


@all_classes
def test_tensor_parallel_and_plain_parameters_of_one_group_move_as_in_one_process(rule, tensors):
    for result in tensors.of(rule):
        assert_moved_alike(result["parameters"], alone(rule.name))
        assert result["meshes"] == [0, 1]


@all_classes
def test_fsdp_over_tensor_parallelism_moves_as_one_process(rule, grid):
    for result in grid.of(rule):
        assert_moved_alike(result["parameters"], alone(rule.name))
        assert result["meshes"] == [0, 1, 2]


@all_classes
def test_zero_moves_as_one_process(rule, zero):
    for result in zero.of(rule):
        assert_moved_alike(result["parameters"], alone(rule.name))


# ## State


def test_some_shards_are_uneven_and_some_are_empty(fsdp):
    sizes = [result["sizes"] for result in fsdp.of(CLASSES[0])]
    assert any(0 < min(of_one) < max(of_one) for of_one in zip(*sizes, strict=True))
    assert any(min(of_one) == 0 for of_one in zip(*sizes, strict=True))


@all_classes
def test_state_is_sharded_as_its_parameter_and_numbers_are_plain(rule, fsdp):
    for result in fsdp.of(rule):
        for state in result["states"]:
            assert state == {n: "number" if n in rule.cls.scalar_state else "like its parameter" for n in state}
            assert state


@all_classes
def test_report_names_the_reader_that_runs(rule, fsdp):
    """Only a kernel writes past torch's operations. What is not fused has a reason."""
    for result in fsdp.of(rule):
        readers = {reader for reader, *_ in result["report"]}
        assert (readers == {"fused"}) == (result["writes"] == [])
        assert set(result["foretold"]) == readers
        assert sum(tensors for _, tensors, *_ in result["report"]) == len(list(Net().parameters()))
        assert all((reader == "fused") == bool(kernel) != bool(why) for reader, _, kernel, why in result["report"])


@all_classes
def test_zero_leaves_each_process_the_state_of_its_own_parameters(rule, zero):
    owned = [result["owned"] for result in zero.of(rule)]
    assert sum(owned) == len(list(Net().parameters()))
    assert min(owned) > 0


# ## Checkpoints


@all_classes
def test_zero_goes_on_from_a_consolidated_state_dict(rule, zero):
    for result in zero.of(rule):
        assert_moved_alike(result["resumed"], alone(rule.name))


@pytest.mark.slow
@all_classes
def test_run_goes_on_with_more_and_with_fewer_processes(rule, thirds):
    for stage, outcome in enumerate(thirds):
        for result in outcome.of(rule):
            assert_moved_alike(result["parameters"], alone(rule.name, 2 * stage + 2))


@pytest.mark.slow
@all_classes
@pytest.mark.parametrize("form", FORMS)
def test_state_dict_moves_no_parameter_and_the_run_goes_on(rule, form, state_dicts):
    """Both for a fresh optimizer: asked for its state dict, and given one. Bit for bit, in each mode of decay."""
    for result in state_dicts.of(rule):
        for decay in decays(rule):
            held = completed(result[f"{decay}, {form}"])
            assert all(held.values()), (decay, held)


@pytest.mark.slow
@all_twins
def test_fresh_optimizer_asked_for_its_state_dict_goes_on_as_torchs(rule, state_dicts):
    for result in state_dicts.of(rule):
        assert_moved_alike(completed(result["asked"])["parameters"], of_twin(result["twin"]))
