"""FLOPs, bytes and cycles of operations as compilers print them, by hand."""

import pytest

from jaxzoo.plan import costs, hlo
from jaxzoo.train.utilization import Chip

CHIP = Chip(flops=1000.0, memory=1, bandwidth=100.0)


def program(*lines, others=''):
  """The costs of the program that these lines are the entry of."""
  body = '\n'.join(f'  {line}' for line in lines)
  text = f'HloModule m\n\n{others}\nENTRY %main () -> f32[] {{\n{body}\n}}\n'
  return costs.count(hlo.parse(text), CHIP)


def test_product_is_2mnk_and_reads_and_writes_once():
  got = program(
    '%a = bf16[4,6]{1,0} parameter(0)',
    '%b = bf16[6,8]{1,0} parameter(1)',
    'ROOT %c = f32[4,8]{1,0} dot(%a, %b), lhs_contracting_dims={1}, '
    'rhs_contracting_dims={0}',
  )
  assert got.flops == 2 * 4 * 8 * 6
  assert got.bytes == 2 * 24 + 2 * 48 + 4 * 32
  assert got.seconds == pytest.approx(got.bytes / 100)  # memory-bound


def test_product_of_cublas_counts_and_its_workspace_does_not():
  got = program(
    '%a = f32[4,6]{1,0} parameter(0)',
    '%b = f32[6,8]{1,0} parameter(1)',
    'ROOT %c = (f32[4,8]{1,0}, s8[4194304]{0}) custom-call(%a, %b), '
    'custom_call_target="__cublas$lt$matmul", '
    'backend_config={"gemm_backend_config":{"dot_dimension_numbers":'
    '{"lhs_contracting_dimensions":["1"],"rhs_contracting_dimensions":["0"],'
    '"lhs_batch_dimensions":[],"rhs_batch_dimensions":[]}}}',
  )
  assert got.flops == 2 * 4 * 8 * 6
  assert got.bytes == 4 * (24 + 48 + 32)


def convolution(data, kernel, result, rest):
  return program(
    f'%x = f32[{data}]{{0}} parameter(0)',
    f'%w = f32[{kernel}]{{0}} parameter(1)',
    f'ROOT %y = f32[{result}]{{0}} convolution(%x, %w), {rest}',
  ).flops


def test_convolution_counts_no_padding():
  labels = 'dim_labels=b01f_01io->b01f'
  full = convolution(
    '2,6,6,4', '3,3,4,8', '2,4,4,8', f'window={{size=3x3}}, {labels}'
  )
  assert full == 2 * (2 * 4 * 4 * 8) * 9 * 4
  same = convolution(
    '2,6,6,4',
    '3,3,4,8',
    '2,6,6,8',
    f'window={{size=3x3 pad=1_1x1_1}}, {labels}',
  )
  # Along each side 6 x 3 places, without the two outside.
  assert same == 2 * 2 * 16 * 16 * 4 * 8


def test_matrix_product_of_a_tpu_is_a_convolution_without_window():
  got = convolution('32,64', '64,16', '32,16', 'dim_labels=bf_io->bf')
  assert got == 2 * 32 * 64 * 16


def test_batched_product_of_a_tpu_pays_for_no_dilation():
  # [12, 5, 7] x [12, 7, 9]: the batch is a window that meets one element each.
  got = convolution(
    '12,5,7',
    '12,7,9',
    '12,5,9',
    'window={size=12 stride=11 pad=0_0 lhs_dilate=12}, dim_labels=0bf_0io->0bf',
  )
  assert got == 2 * 12 * 5 * 7 * 9


def test_gradient_with_dilated_input_counts_what_is_there():
  # A window of 2 over 3 elements that 2 apart leave gaps: 3 meet each place.
  got = convolution(
    '1,3,1',
    '2,1,1',
    '1,4,1',
    'window={size=2 lhs_dilate=2}, dim_labels=b0f_0io->b0f',
  )
  assert got == 2 * 4  # of 4 x 2 pairs, half meet zeros


def test_grouped_convolution_costs_less():
  got = convolution(
    '2,6,6,4',
    '1,1,1,4',
    '2,6,6,4',
    'window={size=1x1}, dim_labels=b01f_01io->b01f, feature_group_count=4',
  )
  assert got == 2 * 2 * 36 * 4


@pytest.mark.parametrize(
  'target, first, second, result',
  [
    ('Forward', '2,7,7,4', '8,3,3,4', '2,3,3,8'),
    ('BackwardInput', '2,3,3,8', '8,3,3,4', '2,7,7,4'),
    ('BackwardFilter', '2,7,7,4', '2,3,3,8', '8,3,3,4'),
  ],
)
def test_gradients_of_cudnn_cost_as_much(target, first, second, result):
  # All have the window and the labels of the forward pass.
  got = program(
    f'%x = f32[{first}]{{0}} parameter(0)',
    f'%w = f32[{second}]{{0}} parameter(1)',
    f'ROOT %y = (f32[{result}]{{0}}, u8[0]{{0}}) custom-call(%x, %w), '
    'window={size=3x3 stride=2x2}, dim_labels=b01f_o01i->b01f, '
    f'custom_call_target="__cudnn$conv{target}"',
  )
  assert got.flops == 2 * (2 * 3 * 3 * 8) * 9 * 4


FUSED = """\
%fused (p: f32[12,64], q: f32[64]) -> f32[64] {
  %p = f32[12,64]{1,0} parameter(0)
  %q = f32[64]{0} parameter(1)
  %i = s32[] constant(3)
  %b = f32[12,64]{1,0} bitcast(%p)
  %s = f32[1,64]{1,0} dynamic-slice(%b, %i, %i), dynamic_slice_sizes={1,64}
  %r = f32[64]{0} reshape(%s)
  ROOT %a = f32[64]{0} add(%r, %q)
}

%updating (p: f32[12,64], q: f32[1,64]) -> f32[12,64] {
  %p = f32[12,64]{1,0} parameter(0)
  %q = f32[1,64]{1,0} parameter(1)
  %i = s32[] constant(3)
  ROOT %u = f32[12,64]{1,0} dynamic-update-slice(%p, %q, %i, %i)
}
"""


def test_fused_slice_of_a_stack_reads_one_layer():
  got = program(
    '%p = f32[12,64]{1,0} parameter(0)',
    '%q = f32[64]{0} parameter(1)',
    'ROOT %f = f32[64]{0} fusion(%p, %q), kind=kLoop, calls=%fused',
    others=FUSED,
  )
  assert got.bytes == 3 * 64 * 4


def test_fused_update_of_a_stack_writes_one_layer():
  got = program(
    '%p = f32[12,64]{1,0} parameter(0)',
    '%q = f32[1,64]{1,0} parameter(1)',
    'ROOT %f = f32[12,64]{1,0} fusion(%p, %q), kind=kLoop, calls=%updating',
    others=FUSED,
  )
  assert got.bytes == 2 * 64 * 4


def test_what_lies_on_the_chip_does_not_move():
  got = program(
    '%p = f32[64]{0:T(128)S(1)} parameter(0)',
    '%q = f32[64]{0:T(128)} tanh(%p)',
    'ROOT %r = f32[64]{0:T(128)S(1)} tanh(%q)',
  )
  assert got.bytes == 2 * 64 * 4


def test_slice_into_the_chip_reads_what_it_gives():
  got = program(
    '%p = f32[12,64]{1,0} parameter(0)',
    '%i = s32[]{:S(6)} constant(3)',
    'ROOT %s = f32[1,64]{1,0:T(8,128)S(1)} dynamic-slice(%p, %i, %i)',
  )
  assert got.bytes == 64 * 4


def test_transfer_into_the_chip_reads_once():
  got = program(
    '%p = f32[64]{0:T(128)} parameter(0)',
    '%s = (f32[64]{0:T(128)S(1)}, f32[64]{0:T(128)}, u32[]{:S(2)}) '
    'copy-start(%p)',
    'ROOT %d = f32[64]{0:T(128)S(1)} copy-done(%s)',
  )
  assert got.bytes == 64 * 4


def test_update_from_the_chip_writes_what_is_new():
  got = program(
    '%p = f32[12,64]{1,0} parameter(0)',
    '%q = f32[1,64]{1,0:T(8,128)S(1)} parameter(1)',
    'ROOT %u = f32[12,64]{1,0} dynamic-update-slice(%p, %q, %i, %i)',
    '%i = s32[] constant(3)',
  )
  assert got.bytes == 64 * 4


@pytest.mark.parametrize(
  'line, want',
  [
    ('all-reduce-start = f32[64]{0} all-reduce-start(%p)', 2 * 64 * 4),
    ('s = (f32[64]{0}, u32[], token[]) send(%p, %t)', 64 * 4 + 4),
  ],
)
def test_what_is_sent_is_read_once(line, want):
  got = program(
    '%p = f32[64]{0} parameter(0)', '%t = token[] after-all()', f'ROOT %{line}'
  )
  assert got.bytes == want


def test_room_for_a_loop_is_not_written():
  got = program(
    'ROOT %p = f32[12,64]{1,0} custom-call(), '
    'custom_call_target="AllocateBuffer"'
  )
  assert got.bytes == 0


def test_cycles_add_up_and_kernels_are_named():
  got = program(
    '%p = f32[64]{0} parameter(0)',
    '%q = f32[64]{0} tanh(%p), backend_config={"window_config":'
    '{"estimated_cycles":"120"}}',
    '%k = f32[64]{0} custom-call(%q), custom_call_target="tpu_custom_call"',
    'ROOT %r = f32[64]{0} copy(%k), backend_config={"window_config":'
    '{"estimated_cycles":"30"}}',
  )
  assert got.cycles == 150
  assert got.unknown == {'tpu_custom_call': 1}


def test_kernel_that_says_what_it_computes_takes_its_roofline():
  estimate = (
    'backend_config={"custom_call_config":{"cost_estimate":'
    '{"flops":"4000000","transcendentals":"9"}}}'
  )
  got = program(
    '%p = f32[64]{0} parameter(0)',
    'ROOT %k = f32[64]{0} custom-call(%p), '
    f'custom_call_target="tpu_custom_call", {estimate}',
  )
  assert got.flops == 4e6
  assert got.kernels == got.seconds > 0
  assert not got.unknown
