"""Programs as compilers print them, taken apart; loops are counted."""

import pytest

from jaxzoo.plan import hlo

# As libtpu 0.0.42 prints a scan over three layers, shortened: the counter is
# copied, layouts have tiles and memory spaces, and tuples comments.
TPU = """\
HloModule jit_step, is_scheduled=true

%fused (p: f32[4,8]) -> f32[4,8] {
  %p = f32[4,8]{1,0:T(8,128)} parameter(0)
  ROOT %tanh.1 = f32[4,8]{1,0:T(8,128)S(1)} tanh(%p)
}

%cond (state: (s32[], f32[4,8])) -> pred[] {
  %bound = s32[]{:T(128)} constant(3)
  %state = (s32[]{:T(128)}, f32[4,8]{1,0:T(8,128)S(1)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%state), index=0
  ROOT %lt = pred[]{:T(512)} compare(%i, %bound), direction=LT, metadata={op_name="jit(step)/while/cond/lt"}
}

%body (state: (s32[], f32[4,8])) -> (s32[], f32[4,8]) {
  %state = (s32[]{:T(128)}, f32[4,8]{1,0:T(8,128)S(1)}) parameter(0)
  %one = s32[]{:T(128)} constant(1)
  %i = s32[]{:T(128)} get-tuple-element(%state), index=0
  %x = f32[4,8]{1,0:T(8,128)S(1)} get-tuple-element(%state), index=1
  %copied = s32[]{:T(128)} copy(%i)
  %add = s32[]{:T(128)} add(%copied, %one)
  %y = f32[4,8]{1,0:T(8,128)S(1)} fusion(%x), kind=kLoop, calls=%fused, backend_config={"window_config":{"estimated_cycles":"100"}}
  ROOT %next = (s32[]{:T(128)}, /*index=1*/f32[4,8]{1,0:T(8,128)S(1)}) tuple(%add, %y)
}

ENTRY %main (a: f32[4,8]) -> f32[4,8] {
  %a = f32[4,8]{1,0:T(8,128)} parameter(0), metadata={op_name="state.params[\\'(a)\\']"}
  %start = s32[]{:T(128)} constant(0)
  %counter = s32[]{:T(128)} copy(%start)
  %init = (s32[]{:T(128)}, f32[4,8]{1,0:T(8,128)}) tuple(%counter, %a)
  %while = (s32[]{:T(128)}, f32[4,8]{1,0:T(8,128)S(1)}) while(%init), condition=%cond, body=%body
  ROOT %out = f32[4,8]{1,0:T(8,128)} get-tuple-element(%while), index=1
}
"""


def runs(text):
  return dict(hlo.executions(hlo.parse(text)))


def test_lines_are_taken_apart():
  program = hlo.parse(TPU)
  assert program.entry == 'main'
  fusion = program.computations['body'].instructions['y']
  assert fusion.opcode == 'fusion' and fusion.operands == ('x',)
  assert hlo.called(fusion, 'calls') == ['fused']
  assert fusion.arrays == [hlo.Array('f32', (4, 8), 1)]
  assert fusion.arrays[0].bytes == 128
  assert program.computations['body'].root == 'next'
  # Parentheses and quotes in metadata end nothing.
  assert program.computations['main'].instructions['a'].inside == '0'


def test_tuple_has_arrays_of_its_own():
  program = hlo.parse(TPU)
  loop = program.computations['main'].instructions['while']
  assert [x.sizes for x in loop.arrays] == [(), (4, 8)]


@pytest.mark.parametrize(
  'dtype, want', [('pred', 1), ('bf16', 2), ('f8e4m3fn', 1), ('token', 0)]
)
def test_bytes_follow_from_the_dtype(dtype, want):
  assert hlo.arrays(f'{dtype}[]')[0].bytes == want


def test_body_of_a_loop_runs_as_often_as_its_counter_says():
  assert runs(TPU) == {'main': 1, 'body': 3}  # what is fused is no program


def test_loop_whose_first_round_is_peeled_runs_one_round_less():
  assert runs(TPU.replace('constant(0)', 'constant(1)'))['body'] == 2


def test_stride_and_an_inclusive_bound_count():
  text = TPU.replace('%one = s32[]{:T(128)} constant(1)',
                     '%one = s32[]{:T(128)} constant(2)')  # fmt: skip
  assert runs(text)['body'] == 2  # 0, 2
  text = TPU.replace('direction=LT', 'direction=LE')
  assert runs(text)['body'] == 4


def test_loop_that_counts_down():
  text = TPU.replace('constant(0)', 'constant(4)').replace(
    '%one = s32[]{:T(128)} constant(1)', '%one = s32[]{:T(128)} constant(-1)'
  ).replace('%bound = s32[]{:T(128)} constant(3)',
            '%bound = s32[]{:T(128)} constant(0)')  # fmt: skip
  down = lambda direction: text.replace('direction=LT', direction)
  assert runs(down('direction=GT'))['body'] == 4  # 4, 3, 2, 1
  assert runs(down('direction=GE'))['body'] == 5


def test_counter_on_the_right_of_the_comparison():
  text = TPU.replace('compare(%i, %bound), direction=LT',
                     'compare(%bound, %i), direction=GT')  # fmt: skip
  assert runs(text)['body'] == 3


def test_known_trip_count_goes_first():
  text = TPU.replace(
    'body=%body',
    'body=%body, backend_config={"known_trip_count":{"n":"7"}}',
  )
  assert runs(text)['body'] == 7


def test_loop_that_does_not_tell_counts_once():
  text = TPU.replace('%counter = s32[]{:T(128)} copy(%start)',
                     '%counter = s32[]{:T(128)} custom-call(%start)')  # fmt: skip
  assert runs(text)['body'] == 1


def test_nested_loops_multiply_and_every_branch_counts():
  text = TPU.replace('ENTRY %main', '%inner').replace(
    'HloModule jit_step, is_scheduled=true',
    """HloModule nested

%outer_cond (s: (s32[], f32[4,8])) -> pred[] {
  %n = s32[] constant(5)
  %s = (s32[], f32[4,8]) parameter(0)
  %i = s32[] get-tuple-element(%s), index=0
  ROOT %lt = pred[] compare(%i, %n), direction=LT
}

%outer_body (s: (s32[], f32[4,8])) -> (s32[], f32[4,8]) {
  %s = (s32[], f32[4,8]) parameter(0)
  %one = s32[] constant(1)
  %i = s32[] get-tuple-element(%s), index=0
  %x = f32[4,8] get-tuple-element(%s), index=1
  %add = s32[] add(%one, %i)
  %p = pred[] constant(true)
  %y = f32[4,8] conditional(%p, %x, %x), true_computation=%inner, false_computation=%other
  ROOT %next = (s32[], f32[4,8]) tuple(%add, %y)
}

%other (x: f32[4,8]) -> f32[4,8] {
  ROOT %x = f32[4,8] parameter(0)
}

ENTRY %top (a: f32[4,8]) -> f32[4,8] {
  %a = f32[4,8] parameter(0)
  %zero = s32[] constant(0)
  %init = (s32[], f32[4,8]) tuple(%zero, %a)
  %while = (s32[], f32[4,8]) while(%init), condition=%outer_cond, body=%outer_body
  ROOT %out = f32[4,8] get-tuple-element(%while), index=1
}
""",
  )
  assert runs(text) == {
    'top': 1,
    'outer_body': 5,
    'inner': 5,
    'other': 5,
    'body': 15,
  }


def test_text_without_a_program_is_refused():
  with pytest.raises(ValueError, match='ENTRY'):
    hlo.parse('HloModule nothing\n')
