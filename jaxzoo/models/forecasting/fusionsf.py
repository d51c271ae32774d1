"""FusionSF: solar power of the next day from three modalities.

arXiv 2402.05823 (KDD 2024). Satellite frames and power of the past day pass a
residual vector quantiser each, so that they carry about as much information as
the weather forecast and their noise is not learned; then a transformer fuses
them hour by hour. A plant enters by its coordinates and its recent power alone,
so that plants never seen in training can be forecast. Without quantisation and
without weather it is CrossViViT.
"""

import functools
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float

from jaxzoo.errors import UserError, nearest
from jaxzoo.models.forecasting.fusionsf_network import ROPE_ORDERS, FusionSF
from jaxzoo.models.layers import residual_vq
from jaxzoo.models.layers.residual_vq import Codebook
from jaxzoo.system import System, from_loss
from jaxzoo.weights import fusionsf as names
from jaxzoo.weights import layout
from jaxzoo.weights import rows as to

SHARDING = (
  (r'attn/(query|key|value)/kernel$', (None, 'tensor', None)),
  (r'attn/out/kernel$', ('tensor', None, None)),
  (r'mlp/fc1/kernel$', (None, 'tensor')),
  (r'mlp/fc1/bias$', ('tensor',)),
  (r'mlp/fc2/kernel$', ('tensor', None)),
)
LOSSES = {'l1': jnp.abs, 'mse': jnp.square}


class Quantizer(NamedTuple):
  """Which tokens are quantised, and how.

  Attributes:
    modalities: of 'satellite', 'power' and 'weather'; each has its codebook.
    size: codes in a codebook.
    stages: codes to a token.
  """

  modalities: tuple[str, ...] = ('satellite', 'power')
  size: int = 1024
  stages: int = 8


class Masking(NamedTuple):
  """How many patches of a frame are hidden while training.

  Attributes:
    ratio: p, or the most that it may be.
    uniform: p is drawn from [0, ratio] for each batch.
  """

  ratio: float = 0.99
  uniform: bool = True


def make_network(config) -> FusionSF:
  """The network of a config, see `build`.

  Raises:
    UserError: a field or an order of the rotary code that there is not.
  """
  fields = dict(config.network)
  for name in fields:
    if name not in FusionSF.__dataclass_fields__:
      raise UserError(
        f'network: no field {name!r}; '
        + nearest(name, FusionSF.__dataclass_fields__)
      )
  order = fields.get('rope_order', ROPE_ORDERS[0])
  if order not in ROPE_ORDERS:
    raise UserError(
      f'network.rope_order: no {order!r}; ' + nearest(order, ROPE_ORDERS)
    )
  for name in ('patch_size', 'periods'):
    if name in fields:
      fields[name] = tuple(fields[name])
  return FusionSF(
    **fields,
    scan=config.scan,
    remat=config.remat,
    dtype=jnp.dtype(config.dtype),
  )


def make_quantizer(config) -> Quantizer:
  """The quantiser of a config, see `build`.

  Raises:
    UserError: a modality that there is not.
  """
  fields = dict(config.quantizer)
  quantizer = Quantizer(**fields)._replace(
    modalities=tuple(fields['modalities'])
  )
  weather = config.network.get('weather', True)
  known = names.MODALITIES if weather else ('satellite', 'power')
  for name in quantizer.modalities:
    if name not in known:
      raise UserError(
        f'quantizer.modalities: no {name!r}; ' + nearest(name, known)
      )
  return quantizer


def quantize(
  tokens: Mapping[str, Float[Array, '...']],
  codebooks: Mapping[str, Mapping],
  stages: int,
  rng: jax.Array | None = None,
) -> tuple[dict, dict, dict]:
  """The tokens of every modality that has a codebook, quantised.

  Args:
    tokens: by modality.
    codebooks: modality -> fields of `Codebook`.
    stages: codes to a token.
    rng: given, it is a training pass and the codebooks move.

  Returns:
    (tokens, modality -> `Quantized`, codebooks after the pass).
  """
  tokens, found, after = dict(tokens), {}, {}
  for turn, name in enumerate(sorted(codebooks)):
    codebook = Codebook(**jax.tree.map(jnp.asarray, codebooks[name]))
    if rng is None:
      found[name] = residual_vq.quantize(codebook, tokens[name], stages)
    else:
      found[name], codebook = residual_vq.quantize_and_learn(
        codebook, tokens[name], stages, jax.random.fold_in(rng, turn)
      )
    tokens[name], after[name] = found[name].vectors, codebook._asdict()
  return tokens, found, after


def draw_kept(
  rng: jax.Array, shape: tuple[int, ...], masking: Masking
) -> Bool[Array, '*b n']:
  """Which patches are seen: int((1 - p) n) random ones of each frame.

  One p for the whole batch; none is seen where p is close to 1.
  """
  draw, noise = jax.random.split(rng)
  ratio = masking.ratio
  if masking.uniform:
    ratio = ratio * jax.random.uniform(draw)
  count = jnp.floor(shape[-1] * (1 - jnp.float32(ratio)) + 1e-4).astype(int)
  order = jnp.argsort(jax.random.uniform(noise, shape), -1)
  return jnp.argsort(order, -1) < count


def forward(
  network: FusionSF,
  params: Mapping,
  codebooks: Mapping[str, Mapping],
  batch: Mapping[str, Array],
  *,
  stages: int,
  masking: Masking | None = None,
  rng: jax.Array | None = None,
  dropout: bool = True,
) -> tuple[Float[Array, 'b t o'], dict, dict]:
  """A pass through network and quantisers.

  Args:
    network: of the parameters.
    params: of the network.
    codebooks: see `quantize`.
    batch: see `build`.
    stages: codes to a token.
    masking: None: all patches are seen.
    rng: given, it is a training pass: codebooks move, patches are hidden.
    dropout: whether a training pass drops anything.

  Returns:
    (forecast, modality -> `Quantized`, codebooks after the pass).
  """
  variables = {'params': params}
  tokens = network.apply(variables, batch, method='embed')
  keys = (None, None, None) if rng is None else jax.random.split(rng, 3)
  tokens, found, codebooks = quantize(tokens, codebooks, stages, keys[0])
  kept = None
  if rng is not None and masking is not None:
    kept = draw_kept(keys[1], tokens['satellite'].shape[:-1], masking)
  forecast = network.apply(
    variables,
    tokens,
    batch['coordinates'],
    batch['site'],
    kept,
    rng is not None and dropout,
    rngs={} if rng is None else {'dropout': keys[2]},
    method='forecast',
  )
  return forecast, found, codebooks


def forecast_loss(
  forecast: Float[Array, 'b t o'],
  target: Float[Array, 'b t o'],
  quantized: Mapping[str, Any],
  kind: str = 'l1',
) -> tuple[Float[Array, ''], dict]:
  """mean |y^ - y| (or its square) + the commitment of all quantisers.

  Returns:
    (the sum, its parts as metrics).
  """
  error = jnp.mean(LOSSES[kind](forecast - target.astype(jnp.float32)))
  commitment = sum((q.commitment for q in quantized.values()), jnp.float32(0))
  return error + commitment, {'error': error, 'commitment': commitment}


def build(config, tx: optax.GradientTransformation) -> System:
  """FusionSF as a system.

  A batch has `satellite` float32 [b, t, h, w, c], `coordinates` [b, h, w, 2] of
  its pixels, `site` [b, 2], `time` int32 [b, t, 3] (month, day, hour), `power`
  [b, t, 1], `weather` [b, t, k] of the hours to come and, for training,
  `target` [b, t, 1].

  Args:
    config: `network`: fields of `FusionSF`; `quantizer`: `modalities` (() for
      none), `size` (1024), `stages` (8); `masking`: `ratio` (0.99), `uniform`;
      `loss.kind`, 'l1' (published) or 'mse'; `dtype`, `scan`, `remat`,
      `microbatches`.
    tx: the optimizer.

  Returns:
    The system. `extra['codebooks']` has the fields of a `Codebook` for each
    modality; k-means finds them in the first step. Metrics: `loss`, `error`,
    `commitment`, `grad_norm`. `predict` gives `forecast` [b, t, 1].

  Raises:
    UserError: see `make_network` and `make_quantizer`, or an unknown loss.
  """
  network, quantizer = make_network(config), make_quantizer(config)
  masking, kind = Masking(**dict(config.masking)), config.loss.kind
  if kind not in LOSSES:
    raise UserError(f'loss.kind: no {kind!r}; ' + nearest(kind, LOSSES))
  if not 0 <= masking.ratio <= 1:
    raise UserError(f'masking.ratio={masking.ratio}: it must be in [0, 1]')
  run = functools.partial(forward, network, stages=quantizer.stages)

  def init(rng, batch):
    one = jax.tree.map(lambda x: jnp.zeros((1, *x.shape[1:]), x.dtype), batch)
    params = network.init(rng, one)['params']
    empty = lambda: residual_vq.empty_codebook(quantizer.size, network.width)
    codebooks = {name: empty()._asdict() for name in quantizer.modalities}
    return params, {'codebooks': codebooks}

  def loss(params, extra, batch, rng):
    forecast, quantized, codebooks = run(
      params, extra['codebooks'], batch, masking=masking, rng=rng
    )
    value, metrics = forecast_loss(forecast, batch['target'], quantized, kind)
    return value, ({**extra, 'codebooks': codebooks}, metrics)

  def predict(params, extra, batch):
    forecast, _, _ = run(params, extra['codebooks'], batch)
    return {'forecast': forecast}

  return from_loss(init, loss, predict, tx, microbatches=config.microbatches)


def rows(network: FusionSF) -> list[to.Row]:
  """The names of the released code for a network without scanned blocks."""
  return names.rows(
    depth=network.depth,
    decoder_depth=network.decoder_depth,
    num_heads=network.num_heads,
    decoder_heads=network.decoder_heads,
    mlp_heads=network.mlp_heads,
    weather=network.weather,
  )


def convert(state_dict: Mapping[str, np.ndarray], config) -> dict:
  """The parameters of a released checkpoint.

  The prefix of a training module in front of all names is stripped.
  """
  state_dict = _bare(state_dict)
  network = make_network(config)
  loaded = to.load(names.network_tensors(state_dict), rows(network))
  # What no row names stays, to be reported.
  params = {**loaded.pop('params', {}), **loaded}
  return layout.stack_deep(params) if config.scan else params


def convert_extra(state_dict: Mapping[str, np.ndarray], config) -> dict:
  """Its codebooks; sums and sizes that it lacks are those of two vectors."""
  loaded = {}
  for name, book in names.codebooks(_bare(state_dict)).items():
    if name not in config.quantizer.modalities:
      continue
    sizes = book.get('sizes', np.full(len(book['codes']), 2, np.float32))
    sums = book.get('sums', book['codes'] * sizes[:, None])
    loaded[name] = dict(
      codes=book['codes'], sizes=sizes, sums=sums, ready=np.array(True)
    )
  return {'codebooks': loaded} if loaded else {}


def export(params: Mapping, extra: Mapping, config) -> dict[str, np.ndarray]:
  """Parameters and codebooks as a released checkpoint: `convert` undone."""
  unrolled = layout.unstack_blocks({'params': params})
  tensors = to.save(unrolled, rows(make_network(config)))
  for name, book in extra['codebooks'].items():
    book = {key: np.asarray(x) for key, x in book.items()}
    tensors |= names.codebook_tensors(book, name, config.quantizer.stages)
  return tensors


def _bare(state_dict):
  prefix = r'(net|model)\.'
  if all(re.match(prefix, name) for name in state_dict):
    return {re.sub(f'^{prefix}', '', n): x for n, x in state_dict.items()}
  return state_dict
