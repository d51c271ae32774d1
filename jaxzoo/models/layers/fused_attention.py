"""Attention over short sequences in one TPU kernel, whole sequences in VMEM.

At 197 tokens the products of attention are 4 % of a ViT block's FLOPs, but its
logits, written to HBM and read again several times in rows that fill no lanes,
take half of its time. Here one step of the grid holds queries, keys and values
of one or a few sequences with all their heads, computes logits, softmax and
result head by head, and only the result leaves the chip. The backward pass
computes the probabilities again. There is no online softmax: every row of
logits is whole.

Arrays come as the projections give them, heads behind positions, and are read
as [sequence, position, heads x width]: nothing is transposed on the way.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

from jaxzoo.platform import platform

HEADS_AXIS = 'tensor'  # of the mesh; sequences lie over all others
MOST_TOKENS = 264  # ViT-L/14 at 224 pixels has 257
_ROWS = 256  # positions of a grid step, where sequences are shorter
_VMEM = 12 * 2**20  # bytes of the 16 MiB that a kernel may have by default
_LOWEST = float(jnp.finfo(jnp.float32).min)


class Extent(NamedTuple):
  """Sizes of a call.

  Attributes:
    batch: sequences.
    queries: positions that ask.
    keys: positions that answer.
    heads: of attention.
    width: of a head.
  """

  batch: int
  queries: int
  keys: int
  heads: int
  width: int


def fits(extent: Extent, itemsize: int, biased: bool) -> bool:
  """Whether both passes have room in VMEM, one sequence at a time.

  Args:
    extent: of the call.
    itemsize: bytes of an element of query, key and value.
    biased: whether there is a bias [heads, queries, keys], or a mask.
  """
  e = extent
  if max(e.queries, e.keys) > MOST_TOKENS:
    return False
  lanes = lambda n: -(-n // 128) * 128
  rows = lambda n: -(-n // 8) * 8
  wide = lanes(e.heads * e.width) * itemsize
  logits = rows(e.queries) * lanes(e.keys) * 4
  # Backward: q, do, dq and k, v, dk, dv, each twice as the next are fetched
  # while these are computed; four matrices of logits; bias and its gradient.
  arrays = 2 * (3 * rows(e.queries) + 4 * rows(e.keys)) * wide
  return arrays + (4 + (3 * e.heads if biased else 0)) * logits <= _VMEM


class Partition(NamedTuple):
  """How a call is spread over devices: Mosaic's kernels are not cut by XLA.

  Attributes:
    mesh: of the context, abstract; None for one device.
    batch: axes over which sequences lie.
    heads: axes over which heads lie.
  """

  mesh: jax.sharding.AbstractMesh | None = None
  batch: tuple[str, ...] = ()
  heads: tuple[str, ...] = ()

  def parts(self, names: tuple[str, ...]) -> int:
    """Devices along some axes."""
    return math.prod(self.mesh.shape[name] for name in names)


def mode() -> str:
  """'compiled' where the program is for TPUs, '' elsewhere."""
  if platform() != 'tpu':
    return ''
  # Without a mesh nobody knows how the arrays lie on several devices.
  known = not jax.sharding.get_abstract_mesh().empty
  return 'compiled' if known or jax.device_count() == 1 else ''


def attend(
  query: Float[Array, '*b q h d'],
  key: Float[Array, '*b k h d'],
  value: Float[Array, '*b k h d'],
  mask: Array | None = None,
  bias: Array | None = None,
  scale: float | None = None,
) -> Float[Array, '*b q h d'] | None:
  """`attention.dot_product_attention` by the kernel; None where it cannot.

  It can on TPUs, for sequences that fit (see `fits`), masks that are the same
  for all heads and biases that are the same for all sequences.
  """
  how = mode()
  if not how or query.dtype not in (jnp.float32, jnp.bfloat16):
    return None
  lead = query.shape[:-3]
  mask, bias = (x if x is None else _flat(x, lead) for x in (mask, bias))
  if mask is False or bias is False:
    return None
  if mask is not None and mask.shape[1] > 1:
    return None
  if bias is not None and (bias.shape[0] > 1 or bias.shape[2] == 1):
    return None
  flat = lambda x: x.reshape(-1, *x.shape[-3:])
  flattened = [flat(x) for x in (query, key, value)]
  batch, queries, heads, width = flattened[0].shape
  partition = _partition(batch, heads)
  if partition is None:
    return None
  extent = Extent(
    batch // partition.parts(partition.batch),
    queries,
    key.shape[-3],
    heads // partition.parts(partition.heads),
    width,
  )
  known = mask is not None or bias is not None
  if not fits(extent, query.dtype.itemsize, known):
    return None
  out = fused_attention(
    *flattened,
    mask,
    bias,
    scale,
    partition=partition,
    interpret=how == 'interpret',
  )
  return out.reshape(query.shape)


def _flat(x, lead):
  """A mask or bias as [b or 1, h or 1, q or 1, k]; False where it cannot be."""
  x = x.reshape((1,) * max(0, 4 - x.ndim) + x.shape)
  own = x.shape[:-3]
  if all(n == 1 for n in own):
    return x.reshape(1, *x.shape[-3:])
  return x.reshape(-1, *x.shape[-3:]) if own == lead else False


def _partition(batch: int, heads: int) -> Partition | None:
  """How a call lies over the mesh of the context; None where it does not."""
  mesh = jax.sharding.get_abstract_mesh()
  axes = {
    name: kind
    for name, kind in zip(mesh.axis_names, mesh.axis_types, strict=True)
    if mesh.shape[name] > 1
  }
  auto = tuple(
    name for name in axes if axes[name] == jax.sharding.AxisType.Auto
  )
  if not auto:  # one device, or inside of `shard_map`
    return Partition()
  partition = Partition(
    mesh, tuple(name for name in auto if name != HEADS_AXIS)
  )
  if len(auto) < len(axes) or batch % partition.parts(partition.batch):
    return None
  if HEADS_AXIS in auto and heads % mesh.shape[HEADS_AXIS] == 0:
    partition = partition._replace(heads=(HEADS_AXIS,))
  return partition


def fused_attention(
  query: Float[Array, 'b q h d'],
  key: Float[Array, 'b k h d'],
  value: Float[Array, 'b k h d'],
  mask: Array | None = None,
  bias: Array | None = None,
  scale: float | None = None,
  *,
  partition: Partition = Partition(),
  interpret: bool = False,
) -> Float[Array, 'b q h d']:
  """The kernel, for what `fits`.

  Gradients reach query, key, value and bias. Probabilities are float32 up to
  the product with the values, whose factors have the dtype of `value`.

  Args:
    query: [sequences, queries, heads, head width].
    key: [sequences, keys, heads, head width].
    value: as `key`.
    mask: bool [b or 1, 1, q or 1, k].
    bias: [1, h or 1, q, k].
    scale: in place of 1 / sqrt(d).
    partition: where the program is for several devices.
    interpret: runs on a CPU, slowly.
  """
  scale = query.shape[-1] ** -0.5 if scale is None else scale
  arrays = {'query': query, 'key': key, 'value': value}
  if mask is not None:
    arrays['mask'] = mask.astype(jnp.int32)
  if bias is not None:
    arrays['bias'] = bias
  return _fused(arrays, scale, partition, interpret)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _fused(arrays, scale, partition, interpret):
  return _forward(arrays, scale, partition, interpret)[0]


def _forward(arrays, scale, partition, interpret):
  def local(arrays):
    call = _Call(arrays, scale, interpret)
    kernel = functools.partial(_forward_kernel, call)
    names = 'query', 'key', 'value'
    return call.run(kernel, arrays, names, ['query'], products=2)[0]

  out = _spread(local, partition, arrays, lambda specs: specs['query'])
  return out, arrays


def _backward(scale, partition, interpret, arrays, cotangent):
  def local(arrays):
    call = _Call(arrays, scale, interpret)
    kernel = functools.partial(_backward_kernel, call)
    names = 'query', 'key', 'value'
    grads = call.run(
      kernel, arrays, (*names, 'cotangent'), names, products=5, bias_grad=True
    )
    if not call.biased:
      return dict(zip(names, grads, strict=True))
    *grads, bias = grads
    if partition.mesh is not None:
      bias = jax.lax.psum(
        bias, partition.batch + (partition.heads if shared else ())
      )
    return {
      **dict(zip(names, grads, strict=True)),
      'bias': bias.astype(arrays['bias'].dtype),
    }

  shared = 'bias' in arrays and arrays['bias'].shape[1] == 1  # by all heads
  given = {**arrays, 'cotangent': cotangent.astype(arrays['query'].dtype)}
  keep = lambda specs: {name: specs[name] for name in arrays if name != 'mask'}
  grads = _spread(local, partition, given, keep)
  if 'mask' in arrays:
    grads['mask'] = np.zeros(arrays['mask'].shape, jax.dtypes.float0)
  return (grads,)


_fused.defvjp(_forward, _backward)


def _spread(function, partition, arrays, out_specs):
  """function(arrays), on every device its part of them."""
  if partition.mesh is None:
    return function(arrays)
  batch, heads = partition.batch or None, partition.heads or None
  specs = {name: PartitionSpec(batch, None, heads) for name in arrays}
  if 'mask' in arrays:
    own = arrays['mask'].shape[0] > 1
    specs['mask'] = PartitionSpec(batch if own else None)
  if 'bias' in arrays:
    own = arrays['bias'].shape[1] > 1
    specs['bias'] = PartitionSpec(None, heads if own else None)
  return jax.shard_map(
    function,
    mesh=partition.mesh,
    in_specs=(specs,),
    out_specs=out_specs(specs),
    check_vma=False,
  )(arrays)


class _Call:
  """One `pallas_call`, forward or backward."""

  def __init__(self, arrays, scale, interpret):
    batch, queries, heads, width = arrays['query'].shape
    keys = arrays['key'].shape[1]
    self.extent = Extent(batch, queries, keys, heads, width)
    self.masked, self.biased = 'mask' in arrays, 'bias' in arrays
    self.scale, self.interpret = scale, interpret
    most = max(1, _ROWS // max(queries, keys))
    # Several short sequences at once, as many as divide their number.
    self.together = next(n for n in range(most, 0, -1) if batch % n == 0)

  def run(self, kernel, arrays, names, results, products, bias_grad=False):
    """Results of the kernel, as the arrays are that `results` names.

    Args:
      kernel: of references to arrays, mask, bias, results, gradient of bias.
      arrays: by name: query, key, value, mask, bias, cotangent.
      names: those that the kernel takes beside mask and bias.
      results: those whose shapes and dtypes the results have.
      products: of matrices of logits with something, for the estimate.
      bias_grad: whether the gradient of a bias is the last result.
    """
    e, n = self.extent, self.together
    bias_grad = bias_grad and self.biased
    flat = lambda x: x.reshape(*x.shape[:2], -1)
    whole = lambda x: pl.BlockSpec(
      (n, x.shape[1], e.heads * e.width), lambda i: (i, 0, 0)
    )
    same = lambda i: (0, 0, 0)
    inputs = [flat(arrays[name]) for name in names]
    specs = [whole(arrays[name]) for name in names]
    if self.masked:
      mask = arrays['mask'][:, 0]
      own = mask.shape[0] > 1
      inputs.append(mask)
      specs.append(
        pl.BlockSpec(
          (n if own else 1, *mask.shape[1:]),
          (lambda i: (i, 0, 0)) if own else same,
        )
      )
    if self.biased:
      bias = arrays['bias'][0]
      inputs.append(bias)
      specs.append(pl.BlockSpec(bias.shape, same))
    likes = [arrays[name] for name in results]
    shapes = [
      jax.ShapeDtypeStruct((*x.shape[:2], e.heads * e.width), x.dtype)
      for x in likes
    ]
    out_specs = [whole(x) for x in likes]
    if bias_grad:
      shapes.append(jax.ShapeDtypeStruct(bias.shape, jnp.float32))
      out_specs.append(pl.BlockSpec(bias.shape, same))
    logits = e.batch * e.heads * e.queries * e.keys
    size = lambda x: x.size * x.dtype.itemsize
    found = pl.pallas_call(
      kernel,
      grid=(e.batch // n,),
      in_specs=specs,
      out_specs=out_specs,
      out_shape=shapes,
      interpret=self.interpret,
      # In order: the gradient of the bias is added up from step to step.
      compiler_params=pltpu.CompilerParams(
        dimension_semantics=('arbitrary' if bias_grad else 'parallel',)
      ),
      cost_estimate=pl.CostEstimate(
        flops=2 * products * logits * e.width,
        transcendentals=logits,
        bytes_accessed=sum(map(size, inputs)) + sum(map(size, shapes)),
      ),
      name='fused_attention' + ('_backward' if products > 2 else ''),
    )(*inputs)
    answers = [
      x.reshape(like.shape) for x, like in zip(found, likes, strict=False)
    ]
    return answers + ([found[-1][None]] if bias_grad else [])

  def take(self, refs, count):
    """(first `count`, mask or None, bias or None, the rest)."""
    refs, rest = refs[:count], list(refs[count:])
    mask = rest.pop(0) if self.masked else None
    bias = rest.pop(0) if self.biased else None
    return refs, mask, bias, rest

  def probabilities(self, q, k, mask, bias, head):
    """Softmax of the logits of a head, float32 [n, q, k]."""
    logits = _product('nqd,nkd->nqk', q, k) * self.scale
    if bias is not None:
      logits += bias[min(head, bias.shape[0] - 1)].astype(jnp.float32)
    if mask is not None:
      logits = jnp.where(mask[:] != 0, logits, _LOWEST)
    weights = jnp.exp(logits - logits.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)

  def head(self, ref, head):
    """Of the array in `ref` the part of a head, [n, t, d]."""
    width = self.extent.width
    return ref[:, :, head * width : (head + 1) * width]


def _product(spec, a, b):
  return jnp.einsum(spec, a, b, preferred_element_type=jnp.float32)


def _forward_kernel(call, *refs):
  (q, k, v), mask, bias, (out,) = call.take(refs, 3)
  width = call.extent.width
  for head in range(call.extent.heads):
    part = functools.partial(call.head, head=head)
    weights = call.probabilities(part(q), part(k), mask, bias, head)
    values = part(v)
    attended = _product('nqk,nkd->nqd', weights.astype(values.dtype), values)
    out[:, :, head * width : (head + 1) * width] = attended.astype(out.dtype)


def _backward_kernel(call, *refs):
  """With P the probabilities: dV = P' dO, dS = P (dP - sum P dP), dP = dO V'."""
  (q, k, v, do), mask, bias, results = call.take(refs, 4)
  width = call.extent.width
  if bias is not None:

    @pl.when(pl.program_id(0) == 0)
    def _():
      results[3][:] = jnp.zeros_like(results[3])

  for head in range(call.extent.heads):
    part = functools.partial(call.head, head=head)
    qh, kh, vh, doh = part(q), part(k), part(v), part(do)
    weights = call.probabilities(qh, kh, mask, bias, head)
    dweights = _product('nqd,nkd->nqk', doh, vh)
    dlogits = weights * (dweights - (weights * dweights).sum(-1, keepdims=True))
    if mask is not None:
      dlogits = jnp.where(mask[:] != 0, dlogits, 0)
    if bias is not None:
      results[3][min(head, bias.shape[0] - 1)] += dlogits.sum(0)
    small = (dlogits * call.scale).astype(qh.dtype)
    grads = (
      _product('nqk,nkd->nqd', small, kh),
      _product('nqk,nqd->nkd', small, qh),
      _product('nqk,nqd->nkd', weights.astype(doh.dtype), doh),
    )
    for result, grad in zip(results[:3], grads, strict=True):
      result[:, :, head * width : (head + 1) * width] = grad.astype(
        result.dtype
      )
