"""Cycles and bytes are summed as the program runs: a loop's body as often as its condition says, a branch's as the dearest of them."""

import pytest

from egoscale_jax.train import hlo

PROGRAM = """HloModule jit_step

%fused (p: f32[8]) -> f32[8] {
  %p = f32[8]{0} parameter(0)
  ROOT %inner = f32[8]{0} add(%p, %p), backend_config={"window_config":{"estimated_cycles":"999"}}
}

%gather_fused (p: f32[8]) -> f32[8] {
  ROOT %reduced = f32[64]{0} all-reduce(%p), replica_groups=mesh['a'=4,'b'=2] {'a'}, to_apply=%fused
}

%inner_cond (s: (s32[])) -> pred[] {
  %bound = s32[] constant(3)
  %i = s32[] get-tuple-element(%s), index=0
  ROOT %lt = pred[] compare(%i, %bound), direction=LT
}

%inner_body (s: (s32[])) -> (s32[]) {
  %work = f32[8]{0:T(8,128)} fusion(%x), kind=kLoop, calls=%fused, metadata={op_name="step/inner"}, backend_config={"estimated_cycles":"10"}
  %sent = bf16[4,256]{1,0:T(8,128)(2,1)S(1)} all-gather(%x), replica_groups={{0,1,2,3},{4,5,6,7}}, dimensions={0}
}

%outer_cond (s: (s32[])) -> pred[] {
  %limit = s32[] constant(5)
  ROOT %c = pred[] fusion(%s, %limit), kind=kLoop, calls=%fused
}

%outer_body (s: (s32[])) -> (s32[]) {
  %loop = (s32[]{:T(128)}, /*index=1*/f32[8]{0:T(8,128)}) while(%s), condition=%inner_cond, body=%inner_body
  %kernel = f32[8]{0} custom-call(%x), custom_call_target="tpu_custom_call", frontend_attributes={kernel_metadata={
{"name": "attention"
}
}}
  %more = f32[8]{0} fusion(%x), kind=kOutput, calls=%fused, metadata={op_name="step/outer"}, backend_config={"estimated_cycles":"100"}
}

%cheap (s: f32[8]) -> f32[8] {
  %little = f32[8]{0} fusion(%s), calls=%fused, backend_config={"estimated_cycles":"1"}
}

%dear (s: f32[8]) -> f32[8] {
  %much = f32[8]{0} fusion(%s), calls=%fused, backend_config={"estimated_cycles":"7"}
}

ENTRY %main (p: f32[8]) -> f32[8] {
  %w = (s32[]) while(%t), condition=%outer_cond, body=%outer_body
  %either = f32[8]{0} conditional(%k, %a, %b), branch_computations={%cheap, %dear}
  %g = f32[1000]{0} fusion(%p), calls=%fused, backend_config={"estimated_cycles":"9223372036854775807"}
  %both = f32[64]{0} fusion(%p), kind=kCustom, calls=%gather_fused, backend_config={"estimated_cycles":"2"}
  ROOT %out = f32[8]{0} copy(%p)
}
"""


def test_cycles_follow_loops_branches_and_fusions():
  cost = hlo.cost(*hlo.parse(PROGRAM.splitlines()))
  assert cost.cycles == 5 * (3 * 10 + 100) + 7 + 2
  assert cost.by_name["step/inner"] == 150
  assert cost.by_name["step/outer"] == 500
  assert cost.untimed_bytes == 4000  # and not 9e18 cycles
  assert cost.kernels == 5


def test_bytes_sent_follow_the_kind_the_group_and_the_loops():
  cost = hlo.cost(*hlo.parse(PROGRAM.splitlines()))
  assert cost.sent_bytes == {("all-gather", 4): 15 * 2 * 4 * 256 * 3 / 4, ("all-reduce", 4): 2 * 3 / 4 * 256}


@pytest.mark.parametrize(
  ("kind", "expected"), [("all-gather", 700), ("all-reduce", 1400), ("reduce-scatter", 5600), ("collective-permute", 800)]
)
def test_a_ring_of_eight(kind, expected):
  assert hlo.sent(kind, 8, "f32[200]{0}") == expected


def test_the_result_of_an_asynchronous_start_is_counted_once():
  line = "  %s = (bf16[8,64]{1,0}, bf16[64,64]{1,0}, u32[]{:S(2)}, u32[]{:S(2)}) all-gather-start(%x), replica_groups=[4,8]<=[32]"
  program = ["ENTRY %main (p: f32[8]) -> f32[8] {", line, "}"]
  assert hlo.cost(*hlo.parse(program)).sent_bytes == {("all-gather", 8): 7 / 8 * 2 * 64 * 64}


def test_a_loop_without_a_readable_bound_is_no_guess():
  program = PROGRAM.replace("%bound = s32[] constant(3)", "%bound = s32[] parameter(1)")
  with pytest.raises(ValueError, match="loop: cannot tell how often it runs"):
    hlo.cost(*hlo.parse(program.splitlines()))


def test_a_text_without_an_entry_is_refused():
  with pytest.raises(ValueError, match="ENTRY"):
    hlo.parse(["HloModule x"])
