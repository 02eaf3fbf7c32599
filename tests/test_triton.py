"""
The kernels for GPUs, by Triton's interpreter (`-m triton`), and the same on a GPU (`-m cuda`): every rule and word,
wherever tensors lie, and what is compiled.

Parameters and gradients are drawn on the CPU, and what a kernel makes of them is compared there: with the single
reader, and with the C kernel of the same rule, whose bits it has to give. In host mode Python reads the rule at each
step; in device mode the kernels calculate the numbers themselves.
"""

import re
import sys

import pytest
import torch
from torch.nn import Parameter

from optimizers import SGD, Adam, AdamFP16, AdamW, GenericAdaptiveOptimizer
from optimizers.engines import c_kernel, device_launch, fused, triton_kernel, triton_launch
from optimizers.engines.scaling import Scaling
from optimizers.engines.triton_kernel import BLOCK, WARPS
from optimizers.engines.triton_launch import TritonLaunch
from tests import helpers, numerics
from tests.helpers import assert_within, same, values
from tests.rules import BY_NAME, ULPS_PER_STEP
from tests.test_fused import LAYOUTS, Plain, Thorough, allocated, as_laid_out, readers
from tests.test_recorder import WORDS, EveryWord, bound, numbers, ulps, without_nan
from tests.triton_cases import (
    DTYPES,
    FUSED,
    SHAPES,
    SINGLE,
    all_rules,
    assert_close,
    assert_fused,
    assert_same_path,
    assert_states_agree,
    c_kernels,
    has_fma,
    here,
    in_mode,
    modes,
    moved,
    pair,
    reports,
    run,
    same_states,
    states,
    step,
    with_gaps,
)

# ## Every rule


@modes
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
@all_rules
def test_rule_moves_as_the_single_reader_moves(rule, dtype, mode, gpu):
    qs = helpers.params(SHAPES, dtype)
    ps, start, rows = moved(qs, gpu), values(qs), with_gaps(helpers.gradients(qs, 5))
    optimizer = run(in_mode(rule.build(ps, "fused"), mode), ps, rows)
    plain = run(rule.build(qs, "single"), qs, rows)
    assert_fused(optimizer, mode)
    # Numbers in a state have 24 bits, also that of a parameter that has more.
    assert_within(max(ULPS_PER_STEP * 5, rule.precision / torch.finfo(dtype).eps), here(ps), qs, start)
    assert_states_agree(optimizer, plain, 5, rule.precision)


SPECIAL = torch.tensor([float("nan"), float("inf"), -float("inf"), 0.0, -0.0, 1e-40, 1e-38, 1e25, -3.0])


@has_fma
@all_rules
def test_rule_gives_the_bits_of_the_c_kernel_in_all_dtypes_of_one_optimizer(rule, gpu):
    qs = [q for dtype in DTYPES for q in helpers.params([(12,)], dtype)]
    ps, rows = moved(qs, gpu), helpers.gradients(qs, 3)
    rows[0][0] = None
    for grad in rows[1]:
        grad[: len(SPECIAL)] = SPECIAL.to(grad.dtype) * (1j if grad.is_complex() else 1)
    optimizer = run(rule.build(ps, "fused"), ps, rows)
    with c_kernels():
        other = run(rule.build(qs, "fused"), qs, rows)
    assert {(e.reader, e.dtype) for e in optimizer.explain().entries} == {
        ("fused", str(dtype).removeprefix("torch.")) for dtype in DTYPES
    }
    got, want = (
        [*here(tensors), *(v for state in states(o) for v in state.values())]
        for o, tensors in ((optimizer, ps), (other, qs))
    )
    assert len(got) == len(want)
    for a, b in zip(got, want, strict=True):
        assert same(*without_nan(*(torch.view_as_real(x) if x.is_complex() else x for x in (a, b))))


def distance(rule, mode, gpu, shapes, steps):
    """The largest distance of a path from the formula, in ULP, as `numerics.distance` measures it."""
    qs = helpers.params(shapes, torch.float32)
    rows = helpers.gradients(qs, steps)
    paths = [
        rule.reference(q.detach().double().numpy(), [row[i].double().numpy() for row in rows]) for i, q in enumerate(qs)
    ]
    ps, worst = moved(qs, gpu), 0.0
    optimizer = in_mode(rule.build(ps, "fused"), mode)
    for number, row in enumerate(rows):
        step(optimizer, ps, row)
        for p, path in zip(here(ps), paths, strict=True):
            apart = abs(p.double().numpy() - path[number]).max() / max(abs(theta).max() for theta in path)
            worst = max(worst, float(apart) / torch.finfo(p.dtype).eps)
    return worst


@modes
@pytest.mark.parametrize("name", ["adamw-amsgrad-maximize", "nadam-decoupled", "radam-betas-eps-l2"])
def test_hundred_steps_stay_within_the_published_distance_of_the_formula(name, mode, gpu):
    limit = numerics.published()[name, "fused", "float32"]
    assert distance(BY_NAME[name], mode, gpu, [(17, 5)], numerics.STEPS) <= limit


# ## Words


class EveryMask(GenericAdaptiveOptimizer):
    """What the masks of a rule are made of."""

    def step_param(self, state, group, grad, param):
        one, two = param > grad, param.abs() < 1.0
        for number, mask in enumerate((one & two, one | two, ~one, ~(one | ~two))):
            state[f"word_{number}"] = torch.where(mask, grad, 3.0)


def of_every_word(cls, dtype, device):
    """What each word gives, on the CPU, and where it was given numbers that a GPU may take for 0."""
    torch.manual_seed(0)
    x, y = numbers(dtype)
    p = Parameter(x.to(device))
    p.grad = y.to(device)
    optimizer = cls([p], FUSED, lr=1.0)
    optimizer.step()
    assert readers(optimizer) == ["fused"]
    return [optimizer.state[p][f"word_{i}"].cpu() for i in range(len(optimizer.state[p]))], is_tiny(x) | is_tiny(y)


def is_tiny(tensor):
    return (tensor.abs() < torch.finfo(tensor.dtype).tiny) & (tensor != 0)


@pytest.mark.parametrize("real", [torch.float32, torch.float64], ids=str)
def test_every_formula_of_c_is_one_of_triton(real):
    assert triton_kernel.language(real).formulas.keys() == c_kernel.FORMULAS.keys()


@has_fma
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_every_word_gives_the_bits_that_it_gives_in_c(dtype, gpu):
    got, tiny = of_every_word(EveryWord, dtype, gpu)
    with c_kernels():
        want, _ = of_every_word(EveryWord, dtype, "cpu")
    rounded = re.compile(r"(torch\.)?(exp|log|tanh|pow)|\*\*")
    apart = {}
    for name, a, b in zip(WORDS, got, want, strict=True):
        assert a.dtype == b.dtype
        if rounded.search(name) and bound(name):
            # These functions are those of libm, of numpy, or of CUDA.
            usual = ~(tiny | is_tiny(a) | is_tiny(b))
            if ulps(a[usual], b[usual]) > 6:
                apart[name] = ulps(a[usual], b[usual])
        elif not same(*without_nan(a, b)):
            apart[name] = "other bits"
    assert apart == {}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_every_mask_gives_the_bits_that_it_gives_in_c(dtype, gpu):
    got, _ = of_every_word(EveryMask, dtype, gpu)
    with c_kernels():
        want, _ = of_every_word(EveryMask, dtype, "cpu")
    assert all(same(*without_nan(a, b)) for a, b in zip(got, want, strict=True))


# ## Where tensors lie, and how large they are


@modes
@pytest.mark.parametrize("name", LAYOUTS)
def test_dense_layout_is_fused(name, mode, gpu):
    qs = [Parameter(LAYOUTS[name]()), Parameter(torch.ones(3))]
    ps, optimizer, qs, plain = pair(gpu, Plain, mode, qs=qs)
    rows = [list(map(as_laid_out, qs, row)) for row in helpers.gradients(qs, 3)]
    run(optimizer, ps, rows)
    run(plain, qs, rows)
    assert_fused(optimizer, mode)
    assert ps[0].stride() == qs[0].stride()
    assert same(here(ps), values(qs))
    assert same_states(optimizer, plain)


@modes
def test_steps_of_empty_tensors_are_counted(mode, gpu):
    for shapes in ([(0,), (3, 0)], [(0,), (4,), (2, 0), ()]):
        ps, optimizer, qs, plain = pair(gpu, Plain, mode, shapes=shapes)
        rows = helpers.gradients(qs, 3)
        run(optimizer, ps, rows)
        run(plain, qs, rows)
        assert_fused(optimizer, mode)
        assert same(here(ps), values(qs))
        assert same_states(optimizer, plain)


SIZES = [1, BLOCK - 1, 0, BLOCK, BLOCK + 1, 3 * BLOCK + 7]


@modes
@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64, torch.bfloat16], ids=str)
def test_size_changes_no_bit(dtype, mode, gpu):
    whole = helpers.params([(max(SIZES),)], dtype)
    ps = moved([whole[0][:size] for size in SIZES], gpu)
    rows = [[grad[:size] for size in SIZES] for (grad,) in helpers.gradients(whole, 2)]
    optimizer = run(in_mode(AdamW(ps, lr=0.1, fused=True), mode), ps, rows)
    with c_kernels():
        run(AdamW(whole, lr=0.1, fused=True), whole, [[row[-1]] for row in rows])
    assert reports(optimizer) == [("fused", len(SIZES), 1)]
    for p, size in zip(here(ps), SIZES, strict=True):
        assert same(p, here(ps)[-1][:size])
    assert_close(ps[-1:], whole, helpers.params([(max(SIZES),)], dtype), 2)


def at_offset(tensor, offset, device):
    """The same, `offset` elements behind the beginning of its memory."""
    memory = torch.zeros(tensor.numel() + offset, dtype=tensor.dtype, device=device)
    memory[offset:] = tensor.detach().to(device)
    return memory[offset:]


@pytest.mark.parametrize("offset", [0, 1, 4])
@pytest.mark.parametrize("size", SIZES)
def test_memory_around_a_tensor_is_left_alone(size, offset, gpu):
    memory = torch.full((offset + size + 9,), 7.0, device=gpu)
    p = Parameter(memory[offset : offset + size])
    optimizer = run(SGD([p], lr=0.1, fused=True), [p], [[torch.ones(size)]] * 2)
    assert readers(optimizer) == ["fused"]
    around = torch.cat([memory[:offset], memory[offset + size :]])
    assert same(around.cpu(), torch.full((offset + 9,), 7.0))
    assert (p.detach() < 7.0).all()


class Placed(Thorough):
    """Its states lie at an offset."""

    offset = 0

    def init_state(self, state, group, param):
        super().init_state(state, group, param)
        for name in ("m", "v"):
            state[name] = at_offset(state[name], self.offset, param.device)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_place_in_memory_changes_no_bit(dtype, gpu):
    (q,) = helpers.params([(BLOCK + 9,)], dtype)
    rows = [grad for (grad,) in helpers.gradients([q], 2)]

    def path(param=0, grad=0, state=0):
        p = Parameter(at_offset(q, param, gpu))
        optimizer = Placed([p], FUSED, lr=1.0)
        optimizer.offset = state
        for row in rows:
            p.grad = at_offset(row, grad, gpu)
            optimizer.step()
        assert readers(optimizer) == ["fused"]
        assert p.data_ptr() % 16 == param * p.element_size() % 16
        return [p.detach().cpu(), *(v.cpu() for v in optimizer.state[p].values())]

    aligned = path()
    assert not same(aligned[0], q.detach())
    for offset in range(1, 6):
        assert same(path(param=offset), aligned)
        assert same(path(grad=offset), aligned)
        assert same(path(state=offset), aligned)
    assert same(path(1, 2, 3), aligned)


def test_neighbours_change_no_bit(gpu):
    qs = helpers.params([(100,), (BLOCK + 5,), (3,), ()], torch.float32)
    together, rows = moved(qs, gpu), helpers.gradients(qs, 2)
    run(Thorough(together, FUSED, lr=1.0), together, rows)
    for i, p in enumerate(moved(qs, gpu)):
        run(Thorough([p], FUSED, lr=1.0), [p], [[row[i]] for row in rows])
        assert same(p.detach(), together[i].detach())


@modes
def test_300_tensors_share_a_launch(mode, gpu):
    qs = helpers.params([(i % 7, 2) for i in range(300)], torch.float32)
    ps, start, rows = moved(qs, gpu), values(qs), helpers.gradients(qs, 1)
    optimizer = run(in_mode(SGD(ps, lr=0.1, fused=True), mode), ps, rows)
    run(SGD(qs, lr=0.1, **SINGLE), qs, rows)
    assert reports(optimizer) == [("fused", 300, 1)]
    assert_close(ps, qs, start, 1)


@modes
def test_step_allocates_no_memory_for_its_elements(mode, gpu):
    ps, optimizer, *_ = pair(gpu, Adam, mode, shapes=[(4000,), (50, 40)])
    run(optimizer, ps, helpers.gradients(ps, 2))
    if gpu.type == "cpu":
        assert max(allocated(optimizer.step), default=0) < 1000
        assert max(allocated(lambda: ps[0].detach() + 1)) >= 16000
    else:
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        optimizer.step()
        assert torch.cuda.max_memory_allocated() - before < 4000


@modes
def test_dtypes_get_a_launch_each(mode, gpu):
    qs = [q for dtype in DTYPES for q in helpers.params([(4, 3), ()], dtype)]
    ps, start, rows = moved(qs, gpu), values(qs), helpers.gradients(qs, 3)
    optimizer = run(in_mode(Adam(ps, lr=0.01, fused=True), mode), ps, rows)
    run(Adam(qs, lr=0.01, **SINGLE), qs, rows)
    assert reports(optimizer) == [("fused", 2, 1)] * 5
    assert_fused(optimizer, mode)
    for i in range(0, len(qs), 2):
        assert_close(ps[i : i + 2], qs[i : i + 2], start[i : i + 2], 3)


@modes
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_moments_in_float32_of_parameters_in_half_precision_are_kept(dtype, mode, gpu):
    optimizer = assert_same_path(gpu, AdamFP16, mode, qs=helpers.params(SHAPES, dtype))
    moments = [v for s in optimizer.state.values() for v in s.values() if v.dtype == torch.float32 and v.dim()]
    assert len(moments) >= 2


# ## Distributed tensors


def test_part_of_a_distributed_tensor_that_lies_here_is_stepped_by_a_kernel(gpu):
    if not torch.distributed.is_available():
        pytest.skip("torch is without torch.distributed")
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Shard
    from torch.testing._internal.distributed.fake_pg import FakeStore

    qs = helpers.params([(3, 4), (2, 5)], torch.float32)
    start, rows = values(qs), helpers.gradients(qs, 4)
    torch.distributed.init_process_group("fake", rank=0, world_size=2, store=FakeStore())
    try:
        mesh = init_device_mesh(gpu.type, (2,))

        def cut(tensor):
            return DTensor.from_local(tensor.detach().to(gpu), mesh, [Shard(0)], run_check=False)

        ps = [Parameter(cut(q)) for q in helpers.copies(qs)]
        optimizer = Adam(ps, lr=0.1, fused=True)
        for number, row in enumerate(rows):
            in_mode(optimizer, "host" if number < 2 else "device")
            for p, g in zip(ps, row, strict=True):
                p.grad = cut(g)
            optimizer.step()
        run(Adam(qs, lr=0.1, **SINGLE), qs, rows)
        assert readers(optimizer) == ["fused"]
        assert [e.elements for e in optimizer.explain().entries] == [22]
        assert_close([p.to_local() for p in ps], qs, start, 4)
    finally:
        torch.distributed.destroy_process_group()


# ## What there is no kernel for


@modes
def test_layout_with_gaps_takes_the_next_reader(mode, gpu):
    memory = torch.linspace(-1, 1, 24).to(gpu)
    qs = [Parameter(memory.cpu()[::2].clone()), Parameter(torch.ones(3))]
    ps, start, rows = [Parameter(memory[::2]), *moved(qs[1:], gpu)], values(qs), helpers.gradients(qs, 6)
    rows[3][0] = rows[4][1] = None
    optimizer = run(in_mode(Adam(ps, lr=0.1), mode), ps, rows)
    run(Adam(qs, lr=0.1, **SINGLE), qs, rows)
    assert sorted(readers(optimizer)) == ["foreach", "fused"]
    assert "gaps in memory" in str(optimizer.explain())
    assert_close(ps, qs, start, 6)


@modes
@pytest.mark.filterwarnings("ignore:optimizer contains a parameter group with duplicate parameters")
def test_parameter_that_is_there_twice_steps_twice(mode, gpu):
    qs = helpers.params([(5,)], torch.float32)
    (p,), (q,), start, rows = moved(qs, gpu), qs, values(qs), helpers.gradients(qs, 4)
    optimizer = in_mode(Adam([p, p], lr=0.1), mode)
    plain = Adam([q, q], lr=0.1, **SINGLE)
    for row in rows:
        step(optimizer, [p], row)
        step(plain, [q], row)
    assert_close([p], [q], start, 8)
    assert [s["step"] for s in states(optimizer)] == [8]


@modes
def test_sparse_gradient_in_the_middle_of_training_is_taken_where_the_rule_takes_it(mode, gpu):
    ps, optimizer, qs, plain = pair(gpu, lambda ps, fused, **options: SGD(ps, lr=0.1, **options), mode, shapes=[(6, 2)])
    start, seen = values(qs), []
    for number, (grad,) in enumerate(helpers.gradients(qs, 5)):
        row = [grad.relu().to_sparse() if number in (2, 3) else grad]
        step(optimizer, ps, row)
        step(plain, qs, row)
        seen += readers(optimizer)
    assert seen == ["fused", "fused", "single", "single", "fused"]
    assert_close(ps, qs, start, 5)


@modes
def test_without_triton_the_next_reader_steps_and_says_why(mode, gpu, monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.setattr(triton_kernel, "_loaded", {})
    qs = helpers.params(SHAPES, torch.float32)
    ps, start, rows = moved(qs, gpu), values(qs), helpers.gradients(qs, 3)
    optimizer = run(in_mode(Adam(ps, lr=0.1), mode), ps, rows)
    run(Adam(qs, lr=0.1, **SINGLE), qs, rows)
    (entry,) = optimizer.explain().entries
    assert entry.reader == "foreach"
    assert "need Triton, which can't be imported" in entry.reason
    assert_close(ps, qs, start, 3)
    before = here(ps)
    for _ in range(2):
        with pytest.raises(RuntimeError, match=r"fused=True can't be had: .*Triton.*install it.*Leave `fused` out"):
            step(in_mode(Adam(ps, fused=True), mode), ps, rows[0])
    assert same(here(ps), before)


class Broken:
    """A kernel that can't be compiled."""

    def warmup(self, *arguments, **options):
        raise ValueError("no such instruction")


def breaking(patch, name, where=""):
    """From now on one of the kernels of sources that contain `where` can't be compiled."""
    for module in (triton_launch, device_launch):

        def load(source, real=module.load):
            functions = real(source)
            return {**functions, name: Broken()} if where in source else functions

        patch.setattr(module, "load", load)


def test_kernel_that_cannot_be_compiled_leaves_its_parameters_to_the_next_reader(gpu, monkeypatch):
    breaking(monkeypatch, "step", "bfloat16")
    qs = [*helpers.params(SHAPES, torch.float32), *helpers.params(SHAPES, torch.bfloat16)]
    ps, start, rows = moved(qs, gpu), values(qs), helpers.gradients(qs, 3)
    optimizer = run(Adam(ps, lr=0.1), ps, rows)
    run(Adam(qs, lr=0.1, **SINGLE), qs, rows)
    assert [(e.reader, e.dtype) for e in optimizer.explain().entries] == [("fused", "float32"), ("foreach", "bfloat16")]
    assert "Triton failed to compile the kernel: ValueError: no such instruction" in str(optimizer.explain())
    assert_close(ps[:2], qs[:2], start[:2], 3)
    assert_close(ps[2:], qs[2:], start[2:], 3)


@modes
def test_kernel_that_cannot_be_compiled_moves_nothing_by_half(mode, gpu, monkeypatch):
    breaking(monkeypatch, "step", "bfloat16")
    ps = moved([*helpers.params(SHAPES, torch.float32), *helpers.params(SHAPES, torch.bfloat16)], gpu)
    before, (row,) = here(ps), helpers.gradients(ps, 1)
    optimizer = in_mode(Adam(ps, lr=0.1, fused=True), mode)
    for _ in range(2):
        with pytest.raises(RuntimeError, match=r"fused=True can't be had: Triton failed to compile.*Leave `fused` out"):
            step(optimizer, ps, row)
    assert same(here(ps), before)
    assert all(not v.any() for state in states(optimizer) for v in state.values())


def test_numbers_that_the_device_cannot_have_are_calculated_here(gpu, monkeypatch):
    breaking(monkeypatch, "calculate")
    ps, optimizer, qs, plain = pair(gpu, Adam, lr=0.1)
    start, rows = values(qs), helpers.gradients(qs, 3)
    run(optimizer, ps, rows)
    run(plain, qs, rows)
    assert_fused(optimizer, "host")
    assert_close(ps, qs, start, 3)


# ## What is compiled for a GPU that need not be there


@pytest.fixture
def compiled(monkeypatch, tmp_path):
    """Compiles the kernels of an optimizer for an H100, and gives the PTX of each by its name."""
    triton = pytest.importorskip("triton")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(triton_kernel, "_loaded", {})
    monkeypatch.setitem(fused.LAUNCHES, "cpu", TritonLaunch)
    types = {"tensors": "i32", "count": "i32", "numbers": "*fp64", "found_inf": "*fp32", "grad_scale": "*fp32"}

    def ptx(source):
        for name, function in triton_kernel.load(source).items():
            if name in ("step", "calculate"):
                arguments = function.arg_names
                signature = {a: "constexpr" if a == "BLOCK" else types.get(a, "*i64") for a in arguments}
                if name == "calculate":
                    signature["tensors"] = "*i64"
                block = BLOCK if name == "step" else device_launch.NUMBERS_BLOCK
                aligned = {(i,): [["tt.divisibility", 16]] for i, a in enumerate(arguments) if signature[a][0] == "*"}
                made = ASTSource(function, signature, {(arguments.index("BLOCK"),): block}, aligned)
                kernel = triton.compile(made, GPUTarget("cuda", 90, 32), triton_launch.OPTIONS)
                yield name, kernel.asm["ptx"]

    return lambda source: dict(ptx(source))


def sources(rule, dtype, mode):
    """The sources of a rule at its first, second and eighth step."""
    ps = helpers.params([(2,)], dtype)
    optimizer, rows = rule.build(ps, "single"), helpers.gradients(ps, 7)
    for some in ([], rows[:1], rows[1:]):
        twin = rule.build(ps)
        twin.load_state_dict(run(optimizer, ps, some).state_dict())
        twin.param_groups[0]["fused"] = True
        yield in_mode(twin, mode).kernel_source()


def assert_compiles(ptx, mode):
    assert set(ptx) == ({"step", "calculate"} if mode == "device" else {"step"})
    assert not re.search(r"\.local|(div|sqrt|rsqrt|rcp)\.(approx|full)|\.ftz", ptx["step"])


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "mode"), [(torch.float32, "device"), (torch.bfloat16, "host")], ids=str)
@all_rules
def test_kernel_of_every_rule_compiles_for_a_gpu(rule, dtype, mode, compiled):
    *_, source = sources(rule, dtype, mode)
    assert_compiles(compiled(source), mode)


@pytest.mark.slow
@modes
@pytest.mark.parametrize("name", ["adam", "radam", "sgd-momentum"])
def test_kernel_compiles_for_a_gpu(name, mode, compiled):
    for source in dict.fromkeys(sources(BY_NAME[name], torch.float32, mode)):
        assert_compiles(compiled(source), mode)


def test_kernels_that_look_up_hyper_parameters_and_the_scale_compile_for_a_gpu(compiled):
    lr, beta1, beta2, eps = (torch.tensor(0.5, dtype=dtype) for dtype in DTYPES[:4])
    optimizer = Adam(helpers.params([(2,)], torch.float32), lr=lr, betas=(beta1, beta2), eps=eps, fused=True)
    plan = optimizer._stepper._make(optimizer, Scaling(torch.zeros(()), torch.ones(())), dry=True)
    (launch,) = plan.jobs[0].launches
    assert "grad_scale)" in launch.source
    assert_compiles(compiled(launch.source), "device")


def test_adam_moves_16_bytes_at_a_time_and_contracts_nothing(compiled):
    *_, source = sources(BY_NAME["adam"], torch.float32, "host")
    text = compiled(source)["step"]
    threads = 32 * WARPS
    assert len(re.findall(r"ld\.global\S*\.v4\.b32", text)) == 4 * BLOCK // (4 * threads)
    assert len(re.findall(r"st\.global\S*\.v4\.b32", text)) == 3 * BLOCK // (4 * threads)
    body, each = source[source.index("def update_0") : source.index("def step")], 2 * BLOCK // threads
    for instruction, formula in {
        "fma.rn.f32": "tl.fma(",
        "div.rn.f32": "tl.div_rn(",
        "sqrt.rn.f32": "tl.sqrt_rn(",
    }.items():
        assert 0 < text.count(instruction) <= body.count(formula) * each


def test_product_and_sum_are_two_instructions_on_a_gpu(compiled):
    class Separate(GenericAdaptiveOptimizer):
        def step_param(self, state, group, grad, param):
            param.add_(grad * param)

    class Joined(GenericAdaptiveOptimizer):
        def step_param(self, state, group, grad, param):
            param.addcmul_(grad, param)

    ps = helpers.params([(2,)], torch.float32)
    separate, joined = (compiled(rule(ps, FUSED, lr=1.0).kernel_source())["step"] for rule in (Separate, Joined))
    assert "fma.rn.f32" in joined
    assert "fma.rn" not in separate
    assert "add.rn.f32" in separate or "add.f32" in separate
