"""What the formulations of a few layers gain over the obvious ones.

    python -m jaxzoo.bench.formulations
    python -m jaxzoo.bench.formulations depthwise knn_mask --json=numbers.json

times, on one map of a published size and in alternating rounds:

    bottleneck      1x1, a matrix product, by `lax.conv_general_dilated`
    loop            3x3, half of the images at a time, by the same
    small           3x3 on a map smaller than the kernel, by the same
    pooling         the gradient of max pooling by which of the places it was,
                    by a search for it
    dense           the gradient to the kernel from the narrower side
    gelu            by erf from the input alone, `jax.nn.gelu`
    attention       values divided by the sums of the weights, `jax.nn.softmax`
    depthwise       a sum of shifts, by `lax.conv_general_dilated` in groups
    local_filter    ELSA: a sum of shifts, by copies of all neighbourhoods
    windows         Swin: reshapes, by gathers with an index for each place
    knn_mask        KVT: a search bit by bit, by `lax.top_k`
    neighbourhoods  STViT: stacked slices, by gathers

each forward and, where there is a gradient, forward and backward. `gain` is the
median over the rounds of how many times as fast ours is. On a CPU the times are
those of all cores of the process, which other load does not change.
"""

import itertools
import math
import sys
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxzoo.bench import command
from jaxzoo.bench.torch_process import clock, since
from jaxzoo.bench.train_step import alternate, speedup, summarize
from jaxzoo.errors import UserError, nearest
from jaxzoo.models.backbones.stvit_block import PATCH, STEP
from jaxzoo.models.backbones.stvit_block import neighbourhoods as sliced
from jaxzoo.models.layers import dense_convolution as dense
from jaxzoo.models.layers import depthwise as depthwise_layers
from jaxzoo.models.layers import pooling as pools
from jaxzoo.models.layers.activation import gelu
from jaxzoo.models.layers.attention import xla_attention
from jaxzoo.models.layers.dense import product
from jaxzoo.models.layers.elsa import local_filter
from jaxzoo.models.layers.knn_attention import knn_mask
from jaxzoo.models.layers.windows import partition, reverse


class Pair(NamedTuple):
  """Two functions that compute the same.

  Attributes:
    ours: what the layers use.
    plain: the obvious one.
    shapes: of their arguments, float32.
    differentiable: whether gradients are measured, too.
  """

  ours: Callable
  plain: Callable
  shapes: tuple[tuple[int, ...], ...]
  differentiable: bool = True


def convolution_pair(layer: Callable, native: Callable, *shapes) -> Pair:
  """Of a layer and XLA's convolution, the map keeping its size."""
  margin = shapes[1][0] // 2
  form = dense.Form(padding=((margin, margin),) * 2)
  return Pair(
    lambda x, kernel: layer(x, kernel, form),
    lambda x, kernel: native(x, kernel, form),
    shapes,
  )


def bottleneck(batch: int) -> Pair:
  """1x1 from 64 to 256 channels on 56x56, as in ResNet-50."""
  shapes = (batch, 56, 56, 64), (1, 1, 64, 256)
  return convolution_pair(dense.convolution, dense.native, *shapes)


def loop(batch: int) -> Pair:
  """3x3 on 7x7x256, in a loop as that over the parts of a batch."""
  count = math.gcd(batch, 2)
  shapes = (batch, 7, 7, 256), (3, 3, 256, 256)
  pair = convolution_pair(dense.convolution, dense.native, *shapes)

  def in_halves(function):
    def halves(x, kernel):
      parts = x.reshape(count, batch // count, *x.shape[1:])
      return lax.map(lambda part: function(part, kernel), parts)

    return halves

  return pair._replace(ours=in_halves(pair.ours), plain=in_halves(pair.plain))


def small(batch: int) -> Pair:
  """3x3 on 2x2x256, as where ResNet-18 ends on pictures of 64x64."""
  shapes = (batch, 2, 2, 256), (3, 3, 256, 256)
  return convolution_pair(dense.convolution, dense.native, *shapes)


def depthwise(batch: int) -> Pair:
  """3x3 on 56x56x144, as in MobileNetV2."""
  shapes = (batch, 56, 56, 144), (3, 3, 1, 144)
  layers = depthwise_layers
  return convolution_pair(layers.depthwise, layers.native, *shapes)


def copied_filter(value, attention, add):
  """`local_filter` with all neighbourhoods side by side."""
  b, h, w, c = value.shape
  heads, taps = attention.shape[3:]
  side = round(taps**0.5)
  margin = (side // 2, side // 2)
  padded = jnp.pad(value, ((0, 0), margin, margin, (0, 0)))
  offsets = itertools.product(range(side), repeat=2)
  copies = [padded[:, i : i + h, j : j + w] for i, j in offsets]
  copies = jnp.stack(copies, -1).reshape(b, h, w, heads, c // heads, taps)
  weights = attention[..., None, :] + add.reshape(heads, c // heads, taps)
  return (copies * weights).sum(-1).reshape(b, h, w, c)


def elsa(batch: int) -> Pair:
  """7x7 on 14x14x384 with 12 heads, as in ELSA-Swin-T."""
  return Pair(
    lambda v, a, add: local_filter(v, a, None, add),
    copied_filter,
    ((batch, 14, 14, 384), (batch, 14, 14, 12, 49), (384, 49)),
  )


def swin(batch: int) -> Pair:
  """Shifted 7x7 windows of 56x56x96 and back, as in Swin-T."""
  side, window, shift = 56, 7, 3
  places = np.arange(side * side).reshape(1, side, side, 1)
  order = np.asarray(partition(places, window, shift)).reshape(-1)
  back = np.argsort(order)

  def gathered(x):
    flat = x.reshape(batch, side * side, -1)[:, order]
    return lax.optimization_barrier(flat)[:, back].reshape(x.shape)

  def ours(x):
    cut = partition(x, window, shift)
    cut = lax.optimization_barrier(cut)
    return reverse(cut, window, (side, side), shift)

  return Pair(ours, gathered, ((batch, side, side, 96),))


def kvt(batch: int) -> Pair:
  """The 100 largest of 197 scores of 6 heads, as in DeiT-S with k-NN."""
  return Pair(
    lambda scores: knn_mask(scores, 100),
    lambda scores: scores >= lax.top_k(scores, 100)[0][..., -1:],
    ((batch, 6, 197, 197),),
    differentiable=False,
  )


def stvit(batch: int) -> Pair:
  """The neighbourhoods of the windows of 14x14x384, as in STViT-R-Swin-T."""
  places = np.arange(14 * 14).reshape(1, 14, 14, 1)
  index = sliced(places, PATCH, STEP)[0, :, :, 0]
  return Pair(
    lambda x: sliced(x, PATCH, STEP),
    lambda x: x.reshape(batch, 14 * 14, -1)[:, index],
    ((batch, 14, 14, 384),),
  )


def pooling(batch: int) -> Pair:
  """3x3 in steps of 2 on 112x112x64, as in ResNet's stem."""
  return Pair(
    lambda x: pools.by_slices(x, 3, 2, 1),
    lambda x: pools.native(x, 3, 2, 1),
    ((batch, 112, 112, 64),),
  )


def dense_layer(batch: int) -> Pair:
  """From 768 to 192 features at 197 places, as in DeiT-Ti."""
  shapes = (197 * batch, 768), (768, 192)
  return Pair(product, lambda x, kernel: x @ kernel, shapes)


def activation(batch: int) -> Pair:
  """GELU of 768 features at 197 places, as in DeiT-Ti."""
  plain = lambda x: jax.nn.gelu(x, approximate=False)
  return Pair(gelu, plain, ((batch, 197, 768),))


def attention(batch: int) -> Pair:
  """3 heads of 64 at 197 places, as in DeiT-Ti."""

  def plain(q, k, v):
    logits = jnp.einsum('bqhd,bkhd->bhqk', q, k) * q.shape[-1] ** -0.5
    return jnp.einsum('bhqk,bkhd->bqhd', jax.nn.softmax(logits), v)

  return Pair(xla_attention, plain, ((batch, 197, 3, 64),) * 3)


PAIRS = {
  'bottleneck': bottleneck,
  'loop': loop,
  'small': small,
  'pooling': pooling,
  'dense': dense_layer,
  'gelu': activation,
  'attention': attention,
  'depthwise': depthwise,
  'local_filter': elsa,
  'windows': swin,
  'knn_mask': kvt,
  'neighbourhoods': stvit,
}


def gradients(function: Callable) -> Callable:
  """All gradients of half the sum of squares of what it computes."""

  def both(*inputs):
    outputs, pull = jax.vjp(function, *inputs)
    return pull(outputs)

  return both


def make_run(function: Callable, inputs):
  """Times calls of the compiled function."""
  program = jax.jit(function).lower(*inputs).compile()

  def run(steps):
    timings = []
    for _ in range(steps):
      started = clock()
      jax.block_until_ready(program(*inputs))
      passed = since(started)
      if jax.default_backend() == 'cpu':
        passed = passed._replace(wall=passed.cpu)
      timings.append(passed)
    return timings

  return run


def measure(name: str, batch: int = 8, steps: int = 5, rounds: int = 5):
  """A dict for each of forward and, where there is one, gradient."""
  pair = PAIRS[name](batch)
  rng = np.random.default_rng(0)
  inputs = [
    jnp.asarray(rng.standard_normal(shape, np.float32)) for shape in pair.shapes
  ]
  results = []
  for what in ('forward', 'gradient')[: 1 + pair.differentiable]:
    wrap = gradients if what == 'gradient' else lambda function: function
    timings = alternate(
      {
        'ours': make_run(wrap(pair.ours), inputs),
        'plain': make_run(wrap(pair.plain), inputs),
      },
      rounds=rounds,
      steps=steps,
      warmup=1,
    )
    times = {key: summarize(x, batch)['step_ms'] for key, x in timings.items()}
    gain = speedup(timings['ours'], timings['plain'])['median']
    results.append(
      {'name': name, 'what': what, **times, 'gain': gain, 'batch': batch}
    )
  return results


def formulations(argv) -> None:
  """The command."""
  parser = command.bare_parser('formulations', 'What formulations gain.')
  add = parser.add_argument
  add('names', nargs='*', metavar='NAME', help=', '.join(PAIRS))
  add('--batch_size', type=int, default=8)
  add('--steps', type=int, default=5, help='in a round (%(default)s)')
  add('--rounds', type=int, default=5, help='(%(default)s)')
  add('--json', metavar='FILE', help='write the numbers')
  arguments = parser.parse_args(argv)
  for name in set(arguments.names) - set(PAIRS):
    raise UserError(f'no formulation {name!r}; ' + nearest(name, PAIRS))
  results = []
  print('| | | ours, ms | plain, ms | gain |\n|---|---|---|---|---|')
  for name in arguments.names or PAIRS:
    found = measure(
      name, arguments.batch_size, arguments.steps, arguments.rounds
    )
    for row in found:
      print(
        '| {name} | {what} | {ours:.1f} | {plain:.1f} | {gain:.1f} |'.format(
          **row
        ),
        flush=True,
      )
    results += found
  if arguments.json:
    command.write_json(arguments.json, {'formulations': results})


if __name__ == '__main__':
  sys.exit(command.run(formulations))
