"""Test the reader of compiled programs on small texts, and on programs for the CPU."""

import jax
import jax.numpy as jnp
import pytest

from benchmarks import report
from benchmarks.compiled import model, musts, rows, scaling, targets
from benchmarks.compiled.text import parse, trips_of, walk
from benchmarks.compiled.work import (
    Collective,
    Work,
    collectives,
    is_kernel,
    work_of,
)
from benchmarks.pictures import draw_compiled

# As XLA writes for a GPU: a loop of 32, one of at most 10, a branch, exchanges.
TEXT = """HloModule jit_step, is_scheduled=true

FileNames
1 "loop.py"

FunctionNames
1 "step"
2 "rollout"
3 "_iterate"
4 "_update_policy"

FileLocations
1 {file_name_id=1 function_name_id=1 line=1 end_line=1 column=1 end_column=2}
2 {file_name_id=1 function_name_id=2 line=2 end_line=2 column=1 end_column=2}
3 {file_name_id=1 function_name_id=3 line=3 end_line=3 column=1 end_column=2}
4 {file_name_id=1 function_name_id=4 line=4 end_line=4 column=1 end_column=2}

StackFrames
1 {file_location_id=1 parent_frame_id=1}
2 {file_location_id=2 parent_frame_id=2}
3 {file_location_id=4 parent_frame_id=2}
4 {file_location_id=3 parent_frame_id=4}


%sum (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %add = f32[] add(%a, %b)
}

%fused_and (p: s32[], q: s32[], r: pred[]) -> pred[] {
  %p = s32[] parameter(0)
  %q = s32[] parameter(1)
  %r = pred[] parameter(2)
  %lt = pred[] compare(%p, %q), direction=LT
  ROOT %and = pred[] and(%lt, %r)
}

%cg_condition (state: (s32[], pred[])) -> pred[] {
  %state = (s32[], pred[]) parameter(0)
  %count = s32[] get-tuple-element(%state), index=0
  %going = pred[] get-tuple-element(%state), index=1
  %most = s32[] constant(10)
  ROOT %loop_and_fusion = pred[] fusion(%count, %most, %going), calls=%fused_and
}

%cg_body (state.1: (s32[], pred[])) -> (s32[], pred[]) {
  %state.1 = (s32[], pred[]) parameter(0)
  %grad = f32[64]{0} all-reduce(%zeros), channel_id=7, to_apply=%sum
  ROOT %copied = (s32[], pred[]) copy(%state.1)
}

%body (carry: (s32[], f32[8,4])) -> (s32[], f32[8,4]) {
  %carry = (s32[], f32[8,4]{1,0}) parameter(0)
  %row = f32[8,4]{1,0} get-tuple-element(%carry), index=1
  ROOT %moved = (s32[], f32[8,4]{1,0}) fusion(%row), kind=kLoop, calls=%sum
}

%condition (carry.1: (s32[], f32[8,4])) -> pred[] {
  %carry.1 = (s32[], f32[8,4]{1,0}) parameter(0)
  %n = s32[] get-tuple-element(%carry.1), index=0
  %end = s32[] constant(32)
  ROOT %less = pred[] compare(%n, %end), direction=LT
}

%short (x.1: f32[4]) -> f32[4] {
  ROOT %x.1 = f32[4]{0} parameter(0)
}

%long (x.2: f32[4]) -> f32[4] {
  %x.2 = f32[4]{0} parameter(0)
  %once = f32[4]{0} copy(%x.2)
  ROOT %twice = f32[4]{0} copy(%once)
}

%gathering (x.3: f32[8]) -> f32[64] {
  %x.3 = f32[8]{0} parameter(0)
  ROOT %ag = f32[64]{0:T(128)S(1)} all-gather(%x.3), channel_id=9, dimensions={0}
}

ENTRY %main (x: f32[8], /*index=1*/y: f32[8,4]) -> f32[64] {
  %x = f32[8]{0:T(8,128)(4,1)S(1)} parameter(0)
  %y = f32[8,4]{1,0} parameter(1)
  %zeros = f32[64]{0} broadcast(%x), dimensions={0}
  %t = (s32[], f32[8,4]{1,0}) tuple(%y, %y)
  %w = (s32[], f32[8,4]{1,0}) while(%t), condition=%condition, body=%body, \
metadata={op_name="while" stack_frame_id=2}, \
backend_config={"known_trip_count":{"n":"32"}}
  %cg = (s32[], pred[]) while(%t), condition=%cg_condition, body=%cg_body, \
metadata={op_name="while" stack_frame_id=4}
  %cond = f32[4]{0} conditional(%x, %x, %x), branch_computations={%short, %long}
  %start = (f32[8]{0}, f32[64]{0}) all-gather-start(%x), channel_id=8, dimensions={0}
  %done = f32[64]{0} all-gather-done(%start)
  %first = (f32[8]{0}, f32[64]{0}) fusion(%x), calls=%gathering
  ROOT %second = f32[64]{0} fusion(%x), calls=%gathering
}
"""


@pytest.fixture(scope="module")
def program():
    return parse(TEXT)


def test_a_text_is_read(program):
    assert program.entry == "main"
    x = program.instructions["x"]
    assert (x.opcode, x.shapes[0].dims, x.nbytes) == ("parameter", (8,), 32)
    assert x.shapes[0].layout == "{0:T(8,128)(4,1)S(1)}"
    loop = program.instructions["cg"]
    assert loop.operands == ("t",)
    assert loop.nbytes == 5
    assert program.source_of(loop) == ("_iterate", "_update_policy", "step")
    assert program.root_of("sum").opcode == "add"


def test_a_text_without_an_entry_is_refused():
    with pytest.raises(ValueError, match="as_text"):
        parse("HloModule nothing")


def test_iterations_are_known_bounded_or_stated(program):
    loop, solve = (program.instructions[name] for name in ("w", "cg"))
    assert trips_of(program, loop) == (32, "exactly")
    assert trips_of(program, solve) == (10, "at most")
    unknown = parse(TEXT.replace('"known_trip_count":{"n":"32"}', ""))
    assert trips_of(unknown, loop) == (32, "exactly")
    named = {
        step.loops[-1]
        for step in walk(
            program,
            stated_trips={"_iterate": (3, "as stated"), "rollout": (5, "as stated")},
        )
        if step.loops
    }
    assert {(loop.name, loop.trips, loop.counted) for loop in named} == {
        ("rollout", 32, "exactly"),
        ("update_policy/iterate", 3, "as stated"),
    }


def test_kernels_are_counted_by_loop(program):
    executed = list(walk(program, stated_trips={}))
    counted = {
        (row["loop"], *row["times"]): row["kernels"] for row in rows.loops(executed)
    }
    # Outside: the broadcast, two copies of the longer branch, one start, two fusions.
    assert counted == {("",): 6, ("rollout", 32): 1, ("update_policy/iterate", 10): 3}
    # The branch, and the solve's condition before each iteration and at its end.
    assert rows.host_reads(executed) == 1 + 10 + 1


def test_each_exchange_is_listed_once(program):
    found = collectives(program, list(walk(program, stated_trips={})))
    assert [(c.kind, c.nbytes, c.times, c.loop) for c in found] == [
        ("all-reduce", 256, 10, "update_policy/iterate"),
        ("all-gather", 256, 1, ""),
        # In two fusions, as a TPU overlaps it.
        ("all-gather", 256, 1, ""),
    ]
    assert [c.shapes for c in found] == ["f32[64]"] * 3


def compiled(fn, *args):
    lowered = jax.jit(fn).lower(*args)
    return parse(lowered.compile().as_text()), lowered


def test_a_scan_is_counted_with_its_iterations():
    def advance(carry, _):
        return jnp.tanh(carry @ carry), carry[0]

    def unroll(carry):
        return jax.lax.scan(advance, carry, length=5)

    program, _ = compiled(unroll, jnp.ones((16, 16)))
    executed = [s for s in walk(program, stated_trips={}) if is_kernel(s.instruction)]
    work = Work()
    for step in executed:
        once = work_of(program, step.instruction)
        work += Work(*(step.times * figure for figure in once))
    assert work.matrix == 5 * 2 * 16**3
    assert work.vector >= 5 * 16**2
    (name,) = {step.loops[0].name for step in executed if step.loops}
    assert name.endswith("unroll")


@pytest.mark.parametrize("stride", [1, 2])
def test_operations_of_convolutions(stride):
    height, width = (-(-size // stride) for size in (9, 7))
    text = f"""ENTRY %main (a: f32[2,9,7,3], b: f32[3,3,3,4]) -> f32[] {{
  %a = f32[2,9,7,3]{{3,2,1,0}} parameter(0)
  %b = f32[3,3,3,4]{{3,2,1,0}} parameter(1)
  ROOT %c = f32[2,{height},{width},4]{{3,2,1,0}} convolution(%a, %b), \
window={{size=3x3 stride={stride}x{stride} pad=1_1x1_1}}, dim_labels=b01f_01io->b01f
}}
"""
    program = parse(text)
    pairs = [
        sum(0 <= i * stride + j - 1 < size for i in range(results) for j in range(3))
        for size, results in ((9, height), (7, width))
    ]
    expected = 2 * 2 * 4 * 3 * pairs[0] * pairs[1]
    assert work_of(program, program.instructions["c"]).matrix == expected


def test_a_batched_product_is_not_its_padding():
    # As for a TPU: a batch of 5 as a window in which each element meets its own.
    text = """ENTRY %main (a: f32[5,2,3], b: f32[5,3,4]) -> f32[5,2,4] {
  %a = f32[5,2,3]{2,1,0} parameter(0)
  %b = f32[5,3,4]{2,1,0} parameter(1)
  ROOT %c = f32[5,2,4]{2,1,0} convolution(%a, %b), window={size=5 stride=4 pad=0_0 \
lhs_dilate=5}, dim_labels=0bf_0io->0bf, operand_precision={highest,highest}
}
"""
    program = parse(text)
    work = work_of(program, program.instructions["c"])
    assert work == Work(
        nbytes=4 * (30 + 60 + 40), full_matrix=2 * 5 * 2 * 3 * 4, vector=0
    )


def test_operations_of_a_library_call():
    text = """ENTRY %main (a: f32[5,3], b: f32[3,4]) -> (f32[5,4], s8[64]) {
  %a = f32[5,3]{1,0} parameter(0)
  %b = f32[3,4]{1,0} parameter(1)
  ROOT %c = (f32[5,4]{1,0}, s8[64]{0}) custom-call(%a, %b), custom_call_target=\
"__cublas$gemm", backend_config={"gemm_backend_config":{"dot_dimension_numbers":\
{"lhs_contracting_dimensions":["1"],"rhs_contracting_dimensions":["0"]},\
"precision_config":{"operand_precision":["HIGHEST","HIGHEST"]}}}
}
"""
    program = parse(text)
    assert work_of(program, program.root_of("main")).full_matrix == 2 * 5 * 3 * 4


FUSION = """%fused (p: f32[100,8], q: s32[], r: f32[100,8]) -> f32[100,8] {
  %p = f32[100,8]{1,0} parameter(0)
  %q = s32[] parameter(1)
  %r = f32[100,8]{1,0} parameter(2)
  %z = s32[] constant(0)
  %row = f32[1,8]{1,0} dynamic-slice(%p, %q, %z), dynamic_slice_sizes={1,8}
  %twice = f32[1,8]{1,0} add(%row, %row)
  ROOT %u = f32[100,8]{1,0} dynamic-update-slice(%r, %twice, %q, %z)
}

ENTRY %main (a: f32[100,8], i: s32[], b: f32[100,8]) -> f32[100,8] {
  %a = f32[100,8]{1,0} parameter(0)
  %i = s32[] parameter(1)
  %b = f32[100,8]{1,0} parameter(2)
  ROOT %f = f32[100,8]{1,0} fusion(%a, %i, %b), kind=kLoop, calls=%fused
}
"""


def test_slices_and_updates_move_what_they_touch():
    program = parse(FUSION)
    work = work_of(program, program.instructions["f"])
    assert work == Work(nbytes=32 + 4 + 32, vector=8)


def reduce_of(nbytes, kind="all-reduce"):
    return Collective(kind, "f32[]", nbytes, 1, "", True)


def test_a_ring_of_nccl():
    eight = targets.TARGETS["h100-8"]
    assert model.nvlink_seconds(eight, reduce_of(0)) == pytest.approx(15e-6)
    # The other protocol takes longer to begin, and sends faster.
    large = 8.4e-6 + 14 * 3.4e-6 + 1e9 * 14 / 8 / 450e9
    assert model.nvlink_seconds(eight, reduce_of(10**9)) == pytest.approx(large)


def test_a_torus():
    pod, slice_ = targets.TARGETS["v5e-256"], targets.TARGETS["v5e-16"]
    assert model.torus_seconds(pod, reduce_of(4)) == pytest.approx(32e-6)
    assert model.torus_seconds(slice_, reduce_of(4)) == pytest.approx(12e-6)
    assert model.torus_seconds(slice_, reduce_of(4, "all-gather")) == pytest.approx(
        6e-6
    )
    large = 2 * 1e9 * 255 / 256 / (4 * 50e9)
    assert model.torus_seconds(pod, reduce_of(10**9)) == pytest.approx(large)


def test_modelled_seconds_are_a_sum():
    target = targets.TARGETS["h100-8"]
    speeds = model.SPEEDS["h100"]
    moving, computing = Work(nbytes=10**6), Work(full_matrix=10**9)
    modelled = model.modelled_seconds(
        target, [(moving, 3), (computing, 2)], [reduce_of(0)]
    )
    assert modelled.launches == pytest.approx(5 * speeds.launch)
    assert modelled.memory == pytest.approx(3e6 / speeds.memory)
    assert modelled.operations == pytest.approx(2e9 / speeds.full_matrix)
    assert modelled.communication == pytest.approx(15e-6)
    parts = (modelled.launches, modelled.memory, modelled.operations, 15e-6)
    assert modelled.total == pytest.approx(sum(parts))


def row_of(*exchanges, **fields):
    return {
        "parameter_bytes": 100,
        "num_agents": 1,
        "temporary_bytes": 12,
        "collectives": [
            reduce_of(4)._replace(**exchange)._asdict() for exchange in exchanges
        ],
    } | fields


@pytest.mark.parametrize(
    ("exchange", "fault"),
    [
        ({}, None),
        ({"nbytes": 200}, None),
        ({"nbytes": 204}, "more than 200 bytes"),
        ({"kind": "all-gather"}, "all-gather"),
        ({"loop": "rollout"}, "in the rollout"),
    ],
)
def test_faults_are_named(exchange, fault):
    found = musts.faults(row_of(exchange))
    assert (not found) if fault is None else fault in found[0]


def test_temporaries_are_compared():
    alone = row_of(temporary_bytes=72)
    assert musts.faults(row_of(), alone) == []
    assert "0.24" in musts.faults(row_of(), alone | {"temporary_bytes": 50})[0]
    assert "between agents" in musts.faults(row_of({}, num_agents=2))[0]


def test_targets_without_a_compiler_are_refused(monkeypatch):
    monkeypatch.setattr(targets, "has_compiler", lambda target: False)
    with pytest.raises(ValueError, match=r"any target.*benchmarks,cuda.*tpu"):
        targets.choose(())
    with pytest.raises(ValueError, match=r"compiler for h100-8.*benchmarks,cuda"):
        targets.choose(("h100-8",))
    with pytest.raises(ValueError, match="write one of h100-1"):
        targets.choose(("h200",))
    monkeypatch.setattr(targets, "has_compiler", lambda t: t.kind == "v5e")
    assert {target.kind for target in targets.choose(())} == {"v5e"}
    assert targets.TARGETS["v5e-256"].devices == 256


def measured(target, num_envs, *, per_device=False, seconds=0.0, exchanged=()):
    """A row of a program that launches for `seconds`."""
    target = targets.TARGETS[target]
    parts = {"launches": seconds, "memory": 0.0, "operations": 0.0}
    communication = 1e-3 * len(exchanged)
    return {
        "program": "feed-forward",
        "target": target.name,
        "devices": target.devices,
        "num_envs": num_envs,
        "rollout_length": 128,
        "num_agents": 1,
        "per_device": per_device,
        "compile_processor_seconds": 2.4,
        "parameter_bytes": 100,
        "temporary_bytes": 2**20,
        "kernels": 52,
        "loops": [
            {"loop": "", "times": [], "counted": [], "kernels": 2},
            {"loop": "solve", "times": [10], "counted": ["at most"], "kernels": 5},
        ],
        "collectives": [reduce_of(size)._asdict() for size in exchanged],
        "modelled_bytes": 1000,
        "modelled_operations": 2000,
        "modelled_seconds": {**parts, "communication": communication},
        "modelled_step_seconds": seconds + communication,
        "modelled_seconds_by_xla": None,
    }


def test_estimates_of_xla_are_added_up(program):
    estimated = parse(
        TEXT.replace("calls=%sum", 'calls=%sum, config={"estimated_cycles":"1500"}')
    )
    executed = list(walk(estimated, stated_trips={}))
    assert rows.seconds_by_xla(executed) == pytest.approx(32 * 1e-6)
    assert rows.seconds_by_xla(list(walk(program, stated_trips={}))) is None


def test_the_size_at_which_communication_is_a_tenth():
    sizes = {"h100-8": (1024, 2048), "v5e-4": (1024, 2048), "h100-1": (1024, 2048)}
    growing = [
        # Half a millisecond, and one more for each 1,024 environments of a device.
        measured(
            name,
            size * targets.TARGETS[name].devices,
            per_device=True,
            seconds=(0.5 + size / 1024) * 1e-3,
            exchanged=[4] * count,
        )
        for name, count in (("h100-8", 1), ("v5e-4", 0))
        for size in sizes[name]
    ]
    # Nine milliseconds beside one of communication.
    size = scaling.size_at_share(growing, "h100-8", 0.1)
    assert size == pytest.approx(8.5 * 1024)
    assert scaling.size_at_share(growing, "v5e-4", 0.1) is None
    assert scaling.size_at_share(growing, "h100-1", 0.1) is None
    assert [row["target"] for row in scaling.grown(growing[::-1])] == [
        *["h100-8"] * 2,
        *["v5e-4"] * 2,
    ]


def test_the_tables_of_compiled_programs(tmp_path):
    found = [
        measured("h100-1", 4096, seconds=2e-3),
        measured("h100-8", 4096, seconds=2e-3, exchanged=(4, 4, 204)),
        measured("h100-8", 8192, per_device=True, seconds=1e-3, exchanged=(4,)),
    ]
    page = report.compiled(found)
    kernels = "| feed-forward, 4,096 × 128 | 52 | 52 | – | – | – | – |"
    assert kernels in page
    assert "| h100-1 | 2 + ≤ 10 × 5 (solve) |" in page
    wrong = "all-reduce of f32[], more than 200 bytes; 1.00 of one device's temporaries"
    assert f"| h100-8 | 3 | 1 of 204, 2 of 4 | 100 | {wrong} |" in page
    assert "| feed-forward, 4,096 × 128 | 2 | 5 (3) | – |" in page
    assert "| h100-8 | 1,024 × 128 | 52 | 2e+03 | 1e+03 | 1 (4 bytes) | 1 | 0 |" in page
    assert draw_compiled(found, tmp_path / "compiled.png")
    assert not draw_compiled(found[:2], tmp_path / "compiled.png")
