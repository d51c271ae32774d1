"""Attention in the blocks of a transformer, as a TPU's compiler predicts it.

    python -m jaxzoo.bench.attention v5e v6e

compiles a block of ViT-B/16, of its text tower and of ViT-L/14, 128 sequences,
forward and backward in bfloat16, for one chip that need not be there (extra
`tpu`): with attention as XLA compiles it, and in the kernel of
`models/layers/fused_attention.py`. Cycles are the compiler's, which does not
know those of a kernel: to them its roofline is added, which is a bound.
"""

import sys
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxzoo.bench import command
from jaxzoo.models.layers.attention import (
  causal_mask,
  dot_product_attention,
  xla_attention,
)
from jaxzoo.models.layers.transformer import Block, BlockInit
from jaxzoo.plan import costs, hlo, topology

HEADER = (
  '| chip | block | attention | cycles ms | kernels ms, at least | MFU | '
  'HBM traffic GiB |'
)


class Size(NamedTuple):
  """A block.

  Attributes:
    tokens: of a sequence.
    width: of a token.
    heads: of attention.
    causal: whether tokens see those before them alone.
  """

  tokens: int
  width: int
  heads: int
  causal: bool = False


BLOCKS = {
  'ViT-B/16, 197 tokens': Size(197, 768, 12),
  'text, 77 tokens': Size(77, 512, 8, causal=True),
  'ViT-L/14, 257 tokens': Size(257, 1024, 16),
}


def measure(argv: list[str]) -> None:
  """The command; see the module."""
  parser = command.bare_parser('attention', __doc__.splitlines()[0])
  parser.add_argument('chips', nargs='+', metavar='CHIP', help='v5e, v6e, ...')
  parser.add_argument('--sequences', type=int, default=128)
  parser.add_argument('--json', metavar='FILE', help='write the numbers')
  arguments = parser.parse_args(argv)
  targets = [topology.parse(one_chip(name)) for name in arguments.chips]
  rows = []
  print(HEADER)
  print('|---' * HEADER.count(' | ') + '|---|')
  for target in targets:
    opened = topology.open_topology(target)
    for name, size in BLOCKS.items():
      for how, attention in (
        ('XLA', xla_attention),
        ('kernel', dot_product_attention),
      ):
        row = predict(opened, size, attention, arguments.sequences)
        rows.append(
          {'chip': target.kind, 'block': name, 'attention': how, **row}
        )
        print(format_row(rows[-1]), flush=True)
        if arguments.json:
          command.write_json(arguments.json, rows)


def one_chip(kind: str) -> str:
  """'v5e:1x1', the smallest slice of a kind, whose first chip is taken."""
  return f'{kind}:{"2x2x1" if kind in ("v4", "v5p") else "1x1"}'


def predict(opened, size: Size, attention, sequences: int) -> dict:
  """Cycles, bytes and FLOPs of a block's gradients on one chip."""
  mesh = Mesh(opened.devices[:1], ('data',))
  whole = NamedSharding(mesh, PartitionSpec())
  init = nn.initializers.xavier_uniform()
  block = Block(
    size.heads,
    BlockInit(*[init] * len(BlockInit._fields)),
    dtype=jnp.bfloat16,
    attention=attention,
  )
  mask = causal_mask(size.tokens) if size.causal else None
  shape = lambda n: (n, size.tokens, size.width)
  params = jax.eval_shape(
    block.init, jax.random.key(0), jnp.zeros(shape(1), jnp.bfloat16)
  )
  place = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole)
  inputs = jax.ShapeDtypeStruct(shape(sequences), jnp.bfloat16)

  def gradients(params, x, cotangent):
    apply = lambda params, x: block.apply(params, x, mask)
    return jax.vjp(apply, params, x)[1](cotangent)

  with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
    lowered = jax.jit(gradients).lower(
      *jax.tree.map(place, (params, inputs, inputs))
    )
  found = costs.count(hlo.parse(lowered.compile().as_text()), opened.chip)
  seconds = found.cycles / opened.chip.clock + found.kernels
  tokens = sequences * size.tokens
  products = 12 * size.width**2 + 2 * size.tokens * size.width
  return {
    'cycles_ms': 1e3 * found.cycles / opened.chip.clock,
    'kernels_ms': 1e3 * found.kernels,
    'mfu': 6 * tokens * products / opened.chip.flops / seconds,
    'bytes': found.bytes,
  }


def format_row(row: dict) -> str:
  """A row of the table."""
  cells = [
    row['chip'],
    row['block'],
    row['attention'],
    f'{row["cycles_ms"]:.2f}',
    f'{row["kernels_ms"]:.2f}',
    f'{100 * row["mfu"]:.0f} %',
    f'{row["bytes"] / 2**30:.2f}',
  ]
  return '| ' + ' | '.join(cells) + ' |'


if __name__ == '__main__':
  sys.exit(command.run(measure))
