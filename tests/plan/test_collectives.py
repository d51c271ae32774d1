"""Collectives as compilers print them: who takes part, and how much is sent."""

import pytest

from jaxzoo.plan import collectives, hlo

MESH = {'data': 2, 'fsdp': 4, 'tensor': 1}  # fsdp varies fastest


def find(*lines, others='', mesh=MESH):
  body = '\n'.join(f'  {line}' for line in lines)
  text = f'HloModule m\n\n{others}\nENTRY %main () -> f32[] {{\n{body}\n}}\n'
  return collectives.find(hlo.parse(text), mesh)


ROWS = ((0, 1, 2, 3), (4, 5, 6, 7))
COLUMNS = ((0, 4), (1, 5), (2, 6), (3, 7))


@pytest.mark.parametrize(
  'text, want',
  [
    ('{{0,1,2,3},{4,5,6,7}}', ROWS),
    ('[2,4]<=[8]', ROWS),
    ('[4,2]<=[2,4]T(1,0)', COLUMNS),
    ("mesh['a'=2,'b'=4] {'b'}", ROWS),
    ("mesh['a'=2,'b'=4] {'a'}", COLUMNS),
    ("mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'b'}", COLUMNS),
    ("mesh['a'=8] {'a':(1)2}", COLUMNS),
    ("mesh['a'=8] {'a':(2)4}", ROWS),
    ("mesh['a'=2,'b'=4] {'a','b'}", (tuple(range(8)),)),
    ('{}', (tuple(range(8)),)),
  ],
)
def test_groups_in_every_notation(text, want):
  attributes = f', channel_id=1, replica_groups={text}, dimensions={{0}}'
  assert collectives.device_groups(attributes, 8) == want


@pytest.mark.parametrize(
  'groups, want',
  [
    (ROWS, ('fsdp',)),
    (COLUMNS, ('data',)),
    ((tuple(range(8)),), ('data', 'fsdp')),
  ],
)
def test_axes_are_those_along_which_a_group_differs(groups, want):
  assert collectives.varying_axes(groups, MESH) == want


def test_bytes_are_those_of_the_whole_array():
  reduced, gathered, scattered = find(
    '%p = f32[16]{0} parameter(0)',
    '%a = (f32[16]{0}, bf16[8]{0}) all-reduce(%p, %p), replica_groups=[2,4]<=[8]',
    '%g = f32[64]{0} all-gather(%p), replica_groups=[2,4]<=[8]',
    'ROOT %s = f32[4]{0} reduce-scatter(%p), replica_groups=[2,4]<=[8]',
  )
  assert (reduced.kind, reduced.bytes) == ('all-reduce', 64 + 16)
  assert (gathered.kind, gathered.bytes) == ('all-gather', 256)
  assert (scattered.kind, scattered.bytes) == ('reduce-scatter', 64)
  assert {c.axes for c in (reduced, gathered, scattered)} == {('fsdp',)}
  assert not (reduced.hidden or gathered.hidden or scattered.hidden)


def test_started_and_finished_counts_once_and_is_hidden():
  found = find(
    '%p = f32[16]{0} parameter(0)',
    '%g = ((f32[16]{0}, s32[2]{0}), (f32[64]{0}, s32[8]{0})) '
    'all-gather-start(%p, %q), replica_groups=[2,4]<=[8]',
    '%gd = (f32[64]{0}, s32[8]{0}) all-gather-done(%g)',
    '%s = (f32[64]{0}, f32[16]{0}) reduce-scatter-start(%p), '
    'replica_groups=[2,4]<=[8]',
    '%sd = f32[16]{0} reduce-scatter-done(%s)',
    '%a = f32[16]{0} all-reduce-start(%p), replica_groups=[2,4]<=[8]',
    '%ad = f32[16]{0} all-reduce-done(%a)',
    '%w = f32[16]{0} all-reduce-start(%p), replica_groups=[2,4]<=[8], '
    'backend_config={"collective_backend_config":{"is_sync":true}}',
    'ROOT %wd = f32[16]{0} all-reduce-done(%w)',
  )
  assert [(c.kind, c.bytes, c.hidden) for c in found] == [
    ('all-gather', 4 * (64 + 8), True),
    ('reduce-scatter', 256, True),
    ('all-reduce', 64, True),
    ('all-reduce', 64, False),
  ]


def test_what_is_not_started_early_any_more_is_not_hidden():
  (found,) = find(
    '%p = f32[16]{0} parameter(0)',
    'ROOT %g = f32[64]{0} all-gather(%p), replica_groups=[2,4]<=[8], '
    'frontend_attributes={async_collective_name="all-gather-start"}',
  )
  assert not found.hidden


LINKS = """\
%fused_1 (p: bf16[8]) -> (bf16[32], u32[]) {
  %p = bf16[8]{0} parameter(0)
  %g.1 = bf16[32]{0} all-gather(%p), channel_id=5, replica_groups=[2,4]<=[8], frontend_attributes={chain_id="0"}
  ROOT %c = (bf16[32]{0}, u32[]) custom-call(%g.1), custom_call_target="AsyncCollectiveStart"
}

%async_collective_fusion (p: bf16[8]) -> bf16[32] {
  %p = bf16[8]{0} parameter(0)
  ROOT %g.2 = bf16[32]{0} all-gather(%p), channel_id=5, replica_groups=[2,4]<=[8], frontend_attributes={chain_id="0"}
}

%all-reduce-scatter (p: f32[64]) -> f32[16] {
  %p = f32[64]{0} parameter(0)
  %r = f32[64]{0} all-reduce(%p), channel_id=6, replica_groups=[2,4]<=[8]
  ROOT %s = f32[16]{0} dynamic-slice(%r, %p), dynamic_slice_sizes={16}
}
"""


def test_links_of_a_tpu_chain_are_one_collective():
  gathered, scattered = find(
    '%p = bf16[8]{0} parameter(0)',
    '%q = f32[64]{0} parameter(1)',
    '%async-collective-start = (bf16[32]{0}, u32[]) fusion(%p), kind=kCustom, '
    'calls=%fused_1',
    '%f = bf16[32]{0} fusion(%p), kind=kCustom, calls=%async_collective_fusion',
    'ROOT %s = f32[16]{0} fusion(%q), kind=kCustom, calls=%all-reduce-scatter',
    others=LINKS,
  )
  assert (gathered.kind, gathered.bytes, gathered.hidden) == (
    'all-gather',
    64,
    True,
  )
  assert (scattered.kind, scattered.bytes, scattered.hidden) == (
    'reduce-scatter',
    256,
    False,
  )


def test_transfer_between_slices_is_an_axis_of_its_own():
  (found,) = find(
    '%p = f32[16]{0} parameter(0)',
    '%s = (f32[16]{0}, u32[], token[]) send(%p, %t), channel_id=2, '
    'is_host_transfer=true, frontend_attributes={_xla_megascale_target='
    '"{1,2}x{0:15}",_xla_megascale_transfer_type="ALL_REDUCE"}',
    'ROOT %d = token[] send-done(%s), channel_id=2',
  )
  assert (found.kind, found.axes, found.bytes) == (
    'all-reduce',
    ('slices',),
    64,
  )


def test_gather_between_slices_has_the_bytes_that_it_makes():
  between = (
    'channel_id=2, is_host_transfer=true, frontend_attributes='
    '{_xla_megascale_transfer_type="ALL_GATHER"}'
  )
  (found,) = find(
    '%p = f32[16]{0} parameter(0)',
    f'%s = (f32[16]{{0}}, u32[], token[]) send(%p, %t), {between}',
    f'%r = (f32[64]{{0}}, u32[], token[]) recv(%t), {between}',
    'ROOT %d = (f32[64]{0}, token[]) recv-done(%r), channel_id=2',
  )
  assert (found.kind, found.axes, found.bytes) == (
    'all-gather',
    ('slices',),
    256,
  )


def test_permutation_names_the_axes_of_its_pairs():
  (found,) = find(
    '%p = f32[16]{0} parameter(0)',
    '%s = (f32[16]{0}, f32[16]{0}, u32[]) collective-permute-start(%p), '
    'source_target_pairs={{0,4},{4,0},{1,5},{5,1}}',
    'ROOT %d = f32[16]{0} collective-permute-done(%s)',
  )
  assert (found.kind, found.axes, found.bytes) == (
    'collective-permute',
    ('data',),
    64,
  )


def test_loops_multiply_and_devices_alone_send_nothing():
  others = """\
%cond (s: (s32[])) -> pred[] {
  %s = (s32[]) parameter(0)
  ROOT %c = pred[] custom-call(%s)
}

%body (s: (s32[])) -> (s32[]) {
  %s = (s32[]) parameter(0)
  %a = f32[16]{0} all-reduce(%s), replica_groups=[2,4]<=[8]
  %b = f32[16]{0} all-reduce(%s), replica_groups=[8,1]<=[8]
  ROOT %t = (s32[]) tuple(%s)
}
"""
  found = find(
    '%p = (s32[]) parameter(0)',
    'ROOT %w = (s32[]) while(%p), condition=%cond, body=%body, '
    'backend_config={"known_trip_count":{"n":"12"}}',
    others=others,
  )
  assert [(c.bytes, c.times) for c in found] == [(64, 12)]
  assert collectives.totals(found) == [
    {'kind': 'all-reduce', 'axes': ['fsdp'], 'count': 12, 'bytes': 768}
  ]
