"""The reader of optimized programs, on a program that is counted by hand."""

import pytest

from sltt_jax.analysis import hlo

# f32[8,4] are 128 bytes, bf16[8,4] 64, f32[5,8,4] 640.
PROGRAM = """
HloModule jit_f, is_scheduled=true

%fused_slice (p0: f32[5,8,4], p1: s32[]) -> bf16[8,4] {
  %p0 = f32[5,8,4]{2,1,0} parameter(0)
  %p1 = s32[] parameter(1)
  %zero = s32[] constant(0)
  %taken = f32[1,8,4]{2,1,0} dynamic-slice(%p0, %p1, %zero, %zero), dynamic_slice_sizes={1,8,4}
  %flat = f32[8,4]{1,0} bitcast(%taken)
  ROOT %half = bf16[8,4]{1,0} convert(%flat)
}

%fused_update (q0: f32[5,8,4], q1: f32[8,4], q2: s32[]) -> (f32[5,8,4], f32[8,4]) {
  %q0 = f32[5,8,4]{2,1,0} parameter(0)
  %q1 = f32[8,4]{1,0} parameter(1)
  %q2 = s32[] parameter(2)
  %none = s32[] constant(0)
  %new = f32[1,8,4]{2,1,0} bitcast(%q1)
  %all = f32[5,8,4]{2,1,0} dynamic-update-slice(%q0, %new, %q2, %none, %none)
  %sum = f32[8,4]{1,0} add(%q1, %q1)
  ROOT %both = (f32[5,8,4]{2,1,0}, f32[8,4]{1,0}) tuple(%all, %sum)
}

%rest (r0: f32[8,4]) -> f32[8,4] {
  %r0 = f32[8,4]{1,0} parameter(0)
  ROOT %copied = f32[8,4]{1,0} copy(%r0)
}

%go_back (b0: f32[8,4]) -> f32[8,4] {
  %b0 = f32[8,4]{1,0} parameter(0)
  %once = f32[8,4]{1,0} copy(%b0)
  %twice = f32[8,4]{1,0} copy(%once)
  ROOT %thrice = f32[8,4]{1,0} copy(%twice)
}

%body (c: (s32[], f32[5,8,4], f32[8,4])) -> (s32[], f32[5,8,4], f32[8,4]) {
  %c = (s32[], f32[5,8,4]{2,1,0}, /*index=2*/f32[8,4]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%c), index=0
  %xs = f32[5,8,4]{2,1,0} get-tuple-element(%c), index=1
  %x = f32[8,4]{1,0} get-tuple-element(%c), index=2
  %read = bf16[8,4]{1,0} fusion(%xs, %i), kind=kLoop, calls=%fused_slice
  %product = (f32[8,4]{1,0}, s8[16]{0}) custom-call(%read), custom_call_target="__cublas$gemm"
  %written = (f32[5,8,4]{2,1,0}, f32[8,4]{1,0}) fusion(%xs, %x, %i), kind=kLoop, calls=%fused_update
  %which = pred[] constant(true)
  %chosen = f32[8,4]{1,0} conditional(%which, %x, %x), CONDITIONAL
  ROOT %next = (s32[], f32[5,8,4]{2,1,0}, f32[8,4]{1,0}) tuple(%i, %xs, %chosen)
}

%condition (d: (s32[], f32[5,8,4], f32[8,4])) -> pred[] {
  %d = (s32[], f32[5,8,4]{2,1,0}, f32[8,4]{1,0}) parameter(0)
  %steps = s32[] constant(5)
  %at = s32[] get-tuple-element(%d), index=0
  ROOT %less = pred[] compare(%at, %steps), direction=LT
}

ENTRY %main (state: f32[8,4], xs: f32[5,8,4]) -> f32[8,4] {
  %state = f32[8,4]{1,0} parameter(0)
  %xs.1 = f32[5,8,4]{2,1,0} parameter(1)
  %start = s32[] constant(0)
  %init = (s32[], f32[5,8,4]{2,1,0}, f32[8,4]{1,0}) tuple(%start, %xs.1, %state)
  %loop = (s32[], f32[5,8,4]{2,1,0}, f32[8,4]{1,0}) while(%init), condition=%condition, body=%body, TRIPS
  %end = f32[8,4]{1,0} get-tuple-element(%loop), index=2
  ROOT %summed = f32[8,4]{1,0} all-reduce(%end), replica_groups={}, to_apply=%rest
}
"""
BRANCHES = "true_computation=%go_back, false_computation=%rest"
K_STEP = f'{BRANCHES}, metadata={{op_name="jit(f)/while/body/sltt_k_step/cond"}}'
KNOWN = 'backend_config={"known_trip_count":{"n":"3"}}'

# A slice of 128 bytes and its place, and what is made of it, 64; the product of that, of 128, and 16 more.
READ, PRODUCT = 128 + 4 + 64, 64 + 128 + 16
# Of what is updated in place the new 128 alone; and 128 read, 128 written.
WRITTEN = 128 + 4 + 128 + 128
OUTSIDE = 2 * 128  # the all-reduce


def program(conditional=BRANCHES, trips="metadata={}"):
    return PROGRAM.replace("CONDITIONAL", conditional).replace("TRIPS", trips)


def test_loops_by_their_trips_and_slices_for_what_they_are():
    each = READ + PRODUCT + WRITTEN + 3 * 256  # the branch that moves more
    by_condition = hlo.count(program())
    assert by_condition.launches == 5 * (3 + 3) + 1
    assert by_condition.moved_bytes == 5 * each + OUTSIDE
    assert (by_condition.all_reduces, by_condition.all_reduce_bytes) == (1, 128)
    as_said = hlo.count(program(trips=KNOWN))
    assert as_said.moved_bytes == 3 * each + OUTSIDE


@pytest.mark.parametrize(
    "conditional", [K_STEP, K_STEP.replace(BRANCHES, "branch_computations={%rest, %go_back}")]
)
def test_the_steps_of_sltt_k_by_their_share(conditional):
    counts = hlo.count(program(conditional), backward_share=0.4)
    assert counts.launches == pytest.approx(5 * (3 + 0.4 * 3 + 0.6 * 1) + 1)
    step = 0.4 * 3 * 256 + 0.6 * 256
    assert counts.moved_bytes == pytest.approx(5 * (READ + PRODUCT + WRITTEN + step) + OUTSIDE)
    # Of another conditional a share says nothing.
    assert hlo.count(program(), backward_share=0.4) == hlo.count(program())


def test_an_all_reduce_in_a_loop_is_found():
    text = program().replace("%once = f32[8,4]{1,0} copy(%b0)", "%once = f32[8,4]{1,0} all-reduce(%b0)")
    counts = hlo.count(text)
    assert (counts.all_reduces, counts.looped_all_reduces, counts.all_reduce_bytes) == (6, 5, 6 * 128)
    assert hlo.count(program()).looped_all_reduces == 0


TPU = """
%wrap (w: f32[64,512]) -> f32[64,512] {
  %w = f32[64,512]{1,0:T(8,128)} parameter(0)
  ROOT %seen = f32[64,512]{1,0:T(8,128)} bitcast(%w)
}

%fused (a: f32[64,512], b: bf16[512]) -> f32[64,512] {
  %a = f32[64,512]{1,0:T(8,128)} parameter(0)
  %b = bf16[512]{0:T(512)S(1)} parameter(1)
  %inner = f32[64,512]{1,0:T(8,128)} fusion(%a), kind=kLoop, calls=%wrap
  %piece = f32[8,512]{1,0:T(8,128)} slice(%inner), slice={[0:8], [0:512]}
  ROOT %out = f32[64,512]{1,0:T(8,128)S(1)} pad(%piece)
}

ENTRY %main (x: f32[64,512], y: bf16[512], z: f32[3,5]) -> f32[3,5] {
  %x = f32[64,512]{1,0:T(8,128)} parameter(0)
  %y = bf16[512]{0:T(512)S(1)} parameter(1)
  %z = f32[3,5]{1,0:T(8,128)} parameter(2)
  %on_chip = f32[64,512]{1,0:T(8,128)S(1)} fusion(%x, %y), kind=kLoop, calls=%fused
  %fetch = (f32[64,512]{1,0:T(8,128)S(1)}, f32[64,512]{1,0:T(8,128)}, u32[]{:S(2)}) copy-start(%x)
  %fetched = f32[64,512]{1,0:T(8,128)S(1)} copy-done(%fetch)
  %part = ((f32[64,512]{1,0:T(8,128)}), f32[8,512]{1,0:T(8,128)S(1)}, s32[]{:S(2)}) slice-start(%x)
  %parted = f32[8,512]{1,0:T(8,128)S(1)} slice-done(%part)
  ROOT %padded = f32[3,5]{1,0:T(8,128)} negate(%z)
}
"""


def test_what_stays_on_a_tpu_is_not_moved_and_tiles_are_whole():
    counts = hlo.count(TPU)
    whole, piece, tile = 64 * 512 * 4, 8 * 512 * 4, 8 * 128 * 4
    # What a fusion in a fusion hands on is read whole.
    assert counts.moved_bytes == whole + whole + piece + 2 * tile
    assert counts.launches == 4


def test_what_cannot_be_counted_is_refused():
    with pytest.raises(ValueError, match="not the text of a compiled program: 'nonsense'"):
        hlo.count("nonsense")
    with pytest.raises(ValueError, match="the length of loop loop is not in the program"):
        hlo.count(program().replace("direction=LT", "direction=NE"))
