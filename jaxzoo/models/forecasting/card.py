"""CARD: channel-aligned robust blend transformer for long-term forecasting.

Wang et al., arXiv 2305.12095 (ICLR 2024). Each channel of the history is cut
into overlapping patches, the tokens; layers alternate attention over channels,
made cheap by a few summary tokens, and attention over tokens. Beside the usual
attention each has one over hidden dimensions, and neighbouring heads are
blended into tokens of several scales. Near steps weigh more in the loss.

Where paper and published code disagree, this follows the code, which the
published numbers come from: scores are multiplied, not divided, by the square
root, and the exponential smoothing of queries over channels ends after as many
rows as there are tokens.
"""

import math
import re
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from jaxzoo.errors import UserError, nearest
from jaxzoo.models.layers.activation import gelu
from jaxzoo.models.layers.convolution import TORCH_DEFAULT, uniform_bias
from jaxzoo.models.layers.hashed_dropout import HashedDropout
from jaxzoo.models.layers.norm import BatchNorm, at_least_float32
from jaxzoo.models.layers.stack import stack
from jaxzoo.models.layers.transformer import REMAT_POLICIES
from jaxzoo.system import System, from_loss
from jaxzoo.weights import card as names
from jaxzoo.weights import layout
from jaxzoo.weights import rows as to

EPSILON = 1e-4  # added to the deviation of a window
LOSSES = ('decayed_mae', 'mae', 'mse')
SHARDING = (
  (r'(qkv|ff[12]_in)/kernel$', (None, 'tensor')),
  (r'ff[12]_out/kernel$', ('tensor', None)),
  (r'head/kernel$', (None, 'tensor')),
)


def dense(features: int, inputs: int, dtype: Any, name: str) -> nn.Dense:
  """A linear layer that begins as PyTorch's do."""
  return nn.Dense(
    features,
    kernel_init=TORCH_DEFAULT,
    bias_init=uniform_bias(inputs),
    dtype=dtype,
    name=name,
  )


def smoothing(
  size: int, alpha: float, rows: int | None = None
) -> Float[np.ndarray, 'n n']:
  """E with (E x)_0 = x_0, (E x)_i = (1 - alpha) (E x)_{i-1} + alpha x_i.

  Args:
    size: n.
    alpha: share of the newest; 1 for no smoothing.
    rows: that are filled, the rest is 0; default all.
  """
  i, j = np.indices((size, size))
  share = np.where(j == 0, 1.0, alpha)
  matrix = np.where(j <= i, share * (1 - alpha) ** np.maximum(i - j, 0), 0.0)
  matrix[size if rows is None else rows :] = 0
  return matrix.astype(np.float32)


def blend(x: Float[Array, 'b g h n e'], merge: int) -> Float[Array, 'b g n d']:
  """Heads to tokens of several scales.

  The axis of heads and positions, h n long, is read as h/merge groups of n
  tokens of `merge` neighbours; output token i has the i-th token of every
  group, its features ordered by (neighbour, group, e). Neighbours in time lie
  within one head: a token of even heads sees twice as far as they do.
  """
  b, g, h, n, e = x.shape
  x = x.reshape(b, g, h // merge, n, merge, e)
  return x.transpose(0, 1, 3, 4, 2, 5).reshape(b, g, n, h * e)


def join_heads(x: Float[Array, 'b g h n e']) -> Float[Array, 'b g n d']:
  """Heads side by side, as everywhere else."""
  b, g, h, n, e = x.shape
  return x.transpose(0, 1, 3, 2, 4).reshape(b, g, n, h * e)


def softmax(scores: Float[Array, '... n']) -> Float[Array, '... n']:
  """In float32 or wider: the scores are large, see the module."""
  return jax.nn.softmax(scores.astype(at_least_float32(scores)))


def einsum32(equation: str, a: Float[Array, '...'], b: Float[Array, '...']):
  """Summed, and given back, in float32 or wider."""
  dtype = at_least_float32(a)
  return jnp.einsum(equation, a, b, preferred_element_type=dtype)


class CardAttention(nn.Module):
  """Attention over the third axis and over hidden dimensions, both fed on.

  With q, k, v of a head and E the smoothing: A = softmax(sqrt(e) E q (E k)^T),
  O1 = A v; A' = softmax(sqrt(n) q^T k), O2 = v A'^T. The blended heads go
  through a norm and a feed-forward network each, are added to the input, and
  normed. Over channels, E k and v are those of `rank` summaries
  k' = P^T k, P = softmax over the summaries of linear(k), likewise v'.

  Attributes:
    heads: h; e = d / h.
    d_ff: width of the two feed-forward networks.
    rank: summaries; 0 for none, attention between all positions.
    dropout: of attention and within the feed-forward networks.
    alpha: of the smoothing; 1 for none.
    smoothed: rows of E that are filled; None for all.
    merge: neighbours that the blend takes together; 0 for plain heads.
    hidden: whether there is attention over hidden dimensions.
    dtype: compute dtype.
  """

  heads: int
  d_ff: int
  rank: int = 0
  dropout: float = 0.0
  alpha: float = 0.5
  smoothed: int | None = None
  merge: int = 2
  hidden: bool = True
  dtype: Any = None

  @nn.compact
  def __call__(
    self, u: Float[Array, 'b g n d'], train: bool = False
  ) -> Float[Array, 'b g n d']:
    b, g, n, d = u.shape
    e = d // self.heads
    qkv = dense(3 * d, d, self.dtype, 'qkv')(u)
    q, k, v = jnp.moveaxis(
      qkv.reshape(b, g, n, 3, self.heads, e), (3, 4), (0, 3)
    )
    drop = lambda x: HashedDropout(self.dropout)(x, train)
    join = (lambda x: blend(x, self.merge)) if self.merge else join_heads

    keys, values = self._summaries(k, v) if self.rank else (k, v)
    scores = math.sqrt(e) * einsum32(
      'bghie,bghje->bghij', self._smooth(q), self._smooth(keys)
    )
    weights = drop(softmax(scores).astype(v.dtype))
    o1 = jnp.einsum('bghij,bghje->bghie', weights, values)
    total = self._feed_forward(join(o1), 1, train)
    if self.hidden:
      scores = math.sqrt(n) * einsum32('bghne,bghnf->bghef', q, k)
      weights = drop(softmax(scores).astype(v.dtype))
      o2 = jnp.einsum('bghef,bghnf->bghne', weights, v)
      total += self._feed_forward(join(o2), 2, train)
    return self._norm('norm_out', u + total, train)

  def _summaries(self, k, v):
    e = k.shape[-1]

    def compress(x, name):
      weights = softmax(dense(self.rank, e, self.dtype, name)(x))
      return jnp.einsum('bghnr,bghne->bghre', weights.astype(x.dtype), x)

    return compress(k, 'summary_k'), compress(v, 'summary_v')

  def _smooth(self, x):
    if self.alpha == 1:
      return x
    matrix = smoothing(x.shape[3], self.alpha, self.smoothed)
    return jnp.einsum('ij,bghje->bghie', matrix.astype(x.dtype), x)

  def _norm(self, name, x, train):
    return BatchNorm(dtype=self.dtype, name=name)(x, train)

  def _feed_forward(self, x, number, train):
    d = x.shape[-1]
    x = self._norm(f'norm{number}', x, train)
    x = dense(self.d_ff, d, self.dtype, f'ff{number}_in')(x)
    x = gelu(x)
    x = HashedDropout(self.dropout)(x, train)
    return dense(d, self.d_ff, self.dtype, f'ff{number}_out')(x)


class CardLayer(nn.Module):
  """u <- norm(u + dropout(linear(o1 + o2))): o1 over channels, o2 over tokens.

  o1 is what attention over channels makes of u, o2 what attention over tokens
  makes of o1.

  Attributes:
    channels: attention over channels; None for the identity.
    tokens: attention over tokens.
    dropout: see above.
    dtype: compute dtype.
  """

  channels: Any
  tokens: Any
  dropout: float = 0.0
  dtype: Any = None

  @nn.compact
  def __call__(
    self, u: Float[Array, 'b c n d'], train: bool = False, rate: float = 0.0
  ) -> Float[Array, 'b c n d']:
    del rate  # no stochastic depth
    o1 = u
    if self.channels is not None:
      o1 = self.channels(name='channels')(u.swapaxes(1, 2), train)
      o1 = o1.swapaxes(1, 2)
    o2 = self.tokens(name='tokens')(o1, train)
    d = u.shape[-1]
    x = dense(d, d, self.dtype, 'mlp')(o1 + o2)
    x = HashedDropout(self.dropout)(x, train)
    return BatchNorm(dtype=self.dtype, name='norm')(x + u, train)


class Card(nn.Module):
  """Forecasts of every channel, in the scale of the history.

  Each window is standardised by its own mean and unbiased deviation, which the
  forecast gets back: what is constant stays so.

  Attributes:
    horizon: steps ahead.
    width: d, of the tokens.
    depth: layers.
    heads: of both attentions; divides `width`.
    d_ff: see `CardAttention`.
    patch: rows of a token.
    stride: between two tokens.
    rank: summaries of the channels.
    merge: see `blend`; 0 for heads side by side. Divides `heads`.
    alpha: of the smoothing of queries and keys; 1 for none.
    ema_full: smoothing over all channels, not over the first n + 1 alone.
    hidden: attention over hidden dimensions.
    channel_attention: attention over channels; without it the forecast of a
      channel depends on that channel alone (but for the norms in training).
    use_statistic: the token in front tells a window's mean and deviation.
    dropout: of embedding, attention and feed-forward networks.
    scan: see `layers/stack.py`.
    remat: a key of `REMAT_POLICIES`, by layer.
    dtype: compute dtype.
  """

  horizon: int
  width: int = 16
  depth: int = 2
  heads: int = 2
  d_ff: int = 32
  patch: int = 16
  stride: int = 8
  rank: int = 8
  merge: int = 2
  alpha: float = 0.5
  ema_full: bool = False
  hidden: bool = True
  channel_attention: bool = True
  use_statistic: bool = False
  dropout: float = 0.0
  scan: bool = False
  remat: str = 'none'
  dtype: Any = None

  @nn.compact
  def __call__(
    self, history: Float[Array, 'b t c'], train: bool = False
  ) -> Float[Array, 'b h c']:
    x = history.astype(at_least_float32(history)).swapaxes(1, 2)
    mean = x.mean(-1, keepdims=True)
    std = x.std(-1, ddof=1, keepdims=True) + EPSILON
    u = self._tokens((x - mean) / std, mean, std, train)
    u = self._layers(u, train)
    flat = u.reshape(*u.shape[:2], -1)
    y = dense(self.horizon, flat.shape[-1], self.dtype, 'head')(flat)
    return (y.astype(x.dtype) * std + mean).swapaxes(1, 2)

  def _tokens(self, z, mean, std, train):
    count = (z.shape[-1] - self.patch) // self.stride + 1
    place = np.arange(count)[:, None] * self.stride + np.arange(self.patch)
    u = dense(self.width, self.patch, self.dtype, 'embed')(z[..., place])
    small = nn.initializers.normal(0.01)
    positions = self.param('positions', small, (count, self.width))
    u = HashedDropout(self.dropout)(u, train) + positions.astype(u.dtype)
    if self.use_statistic:
      first = jnp.concatenate([mean, std], -1)
      if z.shape[1] > 1:  # standardised over the channels
        spread = first.std(1, ddof=1, keepdims=True) + EPSILON
        first = (first - first.mean(1, keepdims=True)) / spread
      first = dense(self.width, 2, self.dtype, 'statistic')(first)[:, :, None]
    else:
      first = self.param('cls', small, (1, self.width))
      first = jnp.broadcast_to(
        first.astype(u.dtype), (*u.shape[:2], 1, u.shape[-1])
      )
    return jnp.concatenate([first, u], 2)

  def _layers(self, u, train):
    tokens = u.shape[2]
    attention = lambda **fields: (
      lambda name: CardAttention(
        self.heads,
        self.d_ff,
        dropout=self.dropout,
        alpha=self.alpha,
        merge=self.merge,
        hidden=self.hidden,
        dtype=self.dtype,
        name=name,
        **fields,
      )
    )
    over_channels = attention(
      rank=self.rank,
      smoothed=None if self.ema_full else tokens,
    )
    layer = CardLayer
    if self.remat != 'none':
      layer = nn.remat(
        CardLayer,
        policy=REMAT_POLICIES[self.remat],
        prevent_cse=not self.scan,
        static_argnums=(2, 3),
      )
    make = lambda name: layer(
      over_channels if self.channel_attention else None,
      attention(),
      self.dropout,
      self.dtype,
      name=name,
    )
    return stack(make, u, [0.0] * self.depth, train, scan=self.scan)


# The system.


def make_network(config) -> Card:
  """The network of a config.

  Raises:
    UserError: sizes that do not go together.
  """
  fields = config.network
  _check(config, fields)
  return Card(
    config.horizon,
    **fields.to_dict(),
    scan=config.scan,
    remat=config.remat,
    dtype=jnp.dtype(config.dtype),
  )


def _check(config, fields) -> None:
  divides = (
    ('heads', 'width'),
    *([('merge', 'heads')] if fields.merge else []),
  )
  for part, whole in divides:
    if fields[part] < 1 or fields[whole] % fields[part]:
      raise UserError(
        f'network.{part}={fields[part]} must divide network.{whole}='
        f'{fields[whole]}'
      )
  if not 1 <= fields.patch <= config.history:
    raise UserError(
      f'network.patch={fields.patch}: it must be at least 1 and no longer than '
      f'history={config.history}'
    )
  for field, value in (
    ('network.stride', fields.stride),
    ('network.rank', fields.rank),
  ):
    if value < 1:
      raise UserError(f'{field}={value}: it must be at least 1')
  if not 0 <= fields.dropout < 1:
    raise UserError(f'network.dropout={fields.dropout}: it must be in [0, 1)')
  if config.loss.kind not in LOSSES:
    raise UserError(
      f'loss.kind: no {config.loss.kind!r}; '
      + nearest(config.loss.kind, LOSSES)
    )


def decayed_mae(
  forecast: Float[Array, 'b h c'], target: Float[Array, 'b h c']
) -> Float[Array, '']:
  """Mean over windows, steps and channels of t^-1/2 |forecast - target|.

  The signal-decay loss (section 3.3): steps t = 1..h ahead, whose noise grows
  with t, weigh less.
  """
  steps = jnp.arange(1, forecast.shape[1] + 1, dtype=forecast.dtype)
  return jnp.mean(steps[:, None] ** -0.5 * jnp.abs(forecast - target))


def compare(kind: str, forecast, target) -> Float[Array, '']:
  """The loss `kind` of `LOSSES`."""
  if kind == 'decayed_mae':
    return decayed_mae(forecast, target)
  error = forecast - target
  return jnp.mean(jnp.abs(error) if kind == 'mae' else error**2)


def build(config, tx: optax.GradientTransformation) -> System:
  """CARD as a system.

  A batch has `history` [b,t,c] and, in training, `target` [b,h,c], both
  standardised by channel. `predict` gives `forecast` [b,h,c], float32.

  Args:
    config: `history`, `horizon`; `network`, the fields of `Card`; `dtype`,
      `scan`, `remat`; loss: `kind`, one of `LOSSES`; `microbatches`.
    tx: the optimizer.

  Raises:
    UserError: sizes that do not go together, or no such loss.
  """
  module = make_network(config)
  kind = config.loss.kind

  def init(rng, batch):
    variables = dict(module.init(rng, jnp.zeros(batch['history'].shape)[:1]))
    return variables.pop('params'), variables

  def loss(params, extra, batch, rng):
    forecast, updated = module.apply(
      {'params': params, 'batch_stats': extra['batch_stats']},
      batch['history'],
      True,
      rngs={'dropout': rng},
      mutable=['batch_stats'],
    )
    target = batch['target']
    metrics = {'mse': jnp.mean((forecast - target) ** 2)}
    return compare(kind, forecast, target), ({**extra, **updated}, metrics)

  def predict(params, extra, batch):
    variables = {'params': params, 'batch_stats': extra['batch_stats']}
    forecast = module.apply(variables, batch['history'])
    return {'forecast': forecast.astype(jnp.float32)}

  return from_loss(init, loss, predict, tx, microbatches=config.microbatches)


# Published checkpoints.


def load(state_dict: Mapping[str, np.ndarray], config) -> dict:
  """{'params', 'batch_stats'} of a published state dict."""
  fields = config.network
  unused = names.unused(fields.use_statistic)
  used = {
    name: value
    for name, value in state_dict.items()
    if not re.fullmatch(unused, name)
  }
  variables = to.load(used, names.rows(fields.depth, fields.use_statistic))
  return layout.stack_blocks(variables) if _stacked(config) else variables


def _stacked(config) -> bool:
  return config.scan and config.network.depth > 1


def convert(state_dict: Mapping[str, np.ndarray], config) -> dict:
  """The parameters of a published checkpoint."""
  variables = load(state_dict, config)
  variables.pop('batch_stats', None)
  # What no row names stays, to be reported.
  return {**variables.pop('params', {}), **variables}


def convert_extra(state_dict: Mapping[str, np.ndarray], config) -> dict:
  """Its running statistics."""
  stats = load(state_dict, config).get('batch_stats')
  return {'batch_stats': stats} if stats else {}
