"""The network of FusionSF (arXiv 2402.05823, section 4; spec fusionsf).

Three modalities become tokens of one width, an hour each or an hour's patches
each: satellite frames, past power, and the weather forecast of the day to come.
What is quantised lies between `embed` and `forecast`, and has its state
elsewhere (`layers/residual_vq.py`).
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxzoo.models.layers.activation import gelu
from jaxzoo.models.layers.convolution import TORCH_DEFAULT, uniform_bias
from jaxzoo.models.layers.patch_embed import check_divisible
from jaxzoo.models.layers.stack import stack
from jaxzoo.models.layers.transformer import REMAT_POLICIES

EPSILON = 1e-5
PERIODS = (12, 31, 24)  # of month, day and hour
ROPE_ORDERS = ('reference', 'consistent')

# Name -> tokens: satellite [b, t, n, d], power [b, t, d], weather [b, t, d].
Tokens = Mapping[str, Float[Array, '...']]


def time_code(
  time: Int[Array, '*b 3'], periods: tuple[int, ...] = PERIODS
) -> Float[Array, '*b 6']:
  """(sin m, cos m, sin d, cos d, sin h, cos h) of 2 pi v / period."""
  angle = 2 * jnp.pi * time.astype(jnp.float32) / jnp.array(periods)
  code = jnp.stack([jnp.sin(angle), jnp.cos(angle)], -1)
  return code.reshape(*time.shape[:-1], -1)


def patches(
  frames: Float[Array, '*b h w c'], size: tuple[int, int]
) -> Float[Array, '*b n p']:
  """Patches row by row, each in the order (row, column, channel)."""
  *b, h, w, c = frames.shape
  rows, columns = h // size[0], w // size[1]
  x = frames.reshape(*b, rows, size[0], columns, size[1], c)
  x = jnp.moveaxis(x, -4, -3)
  return x.reshape(*b, rows * columns, size[0] * size[1] * c)


def rotary_angles(
  coordinates: Float[Array, '*b 2'], width: int, max_frequency: float
) -> Float[Array, '*b d']:
  """Angles of a head's channels, two neighbours alike, float32.

  pi s c0 for the scales s = linspace(1, max_frequency / 2, width / 4), then
  pi s c1.
  """
  scales = jnp.linspace(1.0, max_frequency / 2, width // 4)
  angles = jnp.pi * coordinates.astype(jnp.float32)[..., None] * scales
  return jnp.repeat(angles.reshape(*coordinates.shape[:-1], -1), 2, -1)


def rotate(
  x: Float[Array, '*b n h d'], angles: Float[Array, '*#b n d']
) -> Float[Array, '*b n h d']:
  """x cos + (-x1, x0, -x3, x2, ...) sin, computed in float32."""
  angles = angles[..., None, :]  # the same for all heads
  pairs = x.astype(jnp.float32).reshape(*x.shape[:-1], -1, 2)
  turned = jnp.stack([-pairs[..., 1], pairs[..., 0]], -1).reshape(x.shape)
  return (x * jnp.cos(angles) + turned * jnp.sin(angles)).astype(x.dtype)


def patch_coordinates(
  coordinates: Float[Array, '*b h w 2'],
  size: tuple[int, int],
  order: str = 'reference',
) -> Float[Array, '*b n 2']:
  """The coordinates that the rotary code takes for each patch.

  Args:
    coordinates: of the pixels; a patch has their mean.
    size: of a patch.
    order: 'consistent': each patch its own, row by row. 'reference': the first
      coordinate of the first row and the second of the first column, with
      columns counted slowly, while tokens count rows slowly: what the
      released code does.
  """
  *b, h, w, _ = coordinates.shape
  rows, columns = h // size[0], w // size[1]
  mean = coordinates.reshape(*b, rows, size[0], columns, size[1], 2)
  mean = mean.mean((-4, -2))
  if order == 'consistent':
    return mean.reshape(*b, rows * columns, 2)
  shape = (*b, columns, rows)
  first = jnp.broadcast_to(mean[..., 0, :, 0][..., :, None], shape)
  second = jnp.broadcast_to(mean[..., :, 0, 1][..., None, :], shape)
  return jnp.stack([first, second], -1).reshape(*b, rows * columns, 2)


def dense(features: int, name: str, fan_in: int, dtype, bias=True) -> nn.Dense:
  """A linear layer with PyTorch's initialisation."""
  return nn.Dense(
    features,
    use_bias=bias,
    kernel_init=TORCH_DEFAULT,
    bias_init=uniform_bias(fan_in),
    dtype=dtype,
    name=name,
  )


def layer_norm(name: str, dtype) -> nn.LayerNorm:
  return nn.LayerNorm(epsilon=EPSILON, dtype=dtype, name=name)


class Attention(nn.Module):
  """Multi-head attention whose heads are as wide as they like.

  q, k and v have no bias, the output has one. `angles` are of queries and of
  keys; keys that are not `kept` are not seen, and where none is kept the heads
  give 0. Dropout of the output and, where there are angles, of the weights.
  """

  num_heads: int
  head_width: int
  dropout: float = 0.0
  dtype: Any = None

  @nn.compact
  def __call__(
    self,
    x: Float[Array, '*b q d'],
    context: Float[Array, '*b k d'] | None = None,
    angles: tuple[Float[Array, '*#b q e'], Float[Array, '*#b k e']]
    | None = None,
    kept: Bool[Array, '*b k'] | None = None,
    train: bool = False,
  ) -> Float[Array, '*b q d']:
    context = x if context is None else context
    width = x.shape[-1]
    heads = (self.num_heads, self.head_width)
    project = lambda name, y: nn.DenseGeneral(
      heads,
      use_bias=False,
      kernel_init=TORCH_DEFAULT,
      dtype=self.dtype,
      name=name,
    )(y)
    drop = nn.Dropout(self.dropout, deterministic=not train)
    query, key = project('query', x), project('key', context)
    value = project('value', context)
    if angles is not None:
      query, key = rotate(query, angles[0]), rotate(key, angles[1])
    query, key, value = (y.swapaxes(-3, -2) for y in (query, key, value))
    logits = jnp.einsum(
      '...qd,...kd->...qk',
      query * self.head_width**-0.5,
      key,
      preferred_element_type=jnp.float32,
    )
    if kept is not None:
      seen = kept[..., None, None, :]
      logits = jnp.where(seen, logits, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(logits, -1)
    if kept is not None:
      weights = weights * jnp.any(seen, -1, keepdims=True)
    if angles is not None:
      weights = drop(weights)
    attended = weights.astype(value.dtype) @ value
    inner = self.num_heads * self.head_width
    out = nn.DenseGeneral(
      width,
      axis=(-2, -1),
      kernel_init=TORCH_DEFAULT,
      bias_init=uniform_bias(inner),
      dtype=self.dtype,
      name='out',
    )(attended.swapaxes(-3, -2))
    return drop(out)


class GatedMlp(nn.Module):
  """fc2(a GELU(g)) where (a, g) are the halves of fc1 x; dropout after each."""

  hidden: int
  dropout: float = 0.0
  dtype: Any = None

  @nn.compact
  def __call__(
    self, x: Float[Array, '... d'], train: bool = False
  ) -> Float[Array, '... d']:
    drop = nn.Dropout(self.dropout, deterministic=not train)
    width = x.shape[-1]
    a, g = jnp.split(dense(2 * self.hidden, 'fc1', width, self.dtype)(x), 2, -1)
    y = drop(a * gelu(g))
    return drop(dense(width, 'fc2', self.hidden, self.dtype)(y))


class Block(nn.Module):
  """x += attention(LN x); x += MLP(LN x).

  With a `source`, x asks and LN source answers; the source is not changed.
  """

  num_heads: int
  head_width: int
  mlp_ratio: float
  dropout: float = 0.0
  dtype: Any = None

  @nn.compact
  def __call__(
    self,
    x: Float[Array, '*b q d'],
    train: bool = False,
    rate=0.0,
    angles=None,
    kept: Bool[Array, '*b k'] | None = None,
    source: Float[Array, '*b k d'] | None = None,
  ) -> Float[Array, '*b q d']:
    del rate  # of the drop path, which is not used here
    context = None
    if source is not None:
      context = layer_norm('ln_source', self.dtype)(source)
    x = x + Attention(
      self.num_heads, self.head_width, self.dropout, self.dtype, name='attn'
    )(layer_norm('ln_1', self.dtype)(x), context, angles, kept, train)
    hidden = int(self.mlp_ratio * x.shape[-1])
    mlp = GatedMlp(hidden, self.dropout, self.dtype, name='mlp')
    return x + mlp(layer_norm('ln_2', self.dtype)(x), train)


class Blocks(nn.Module):
  """A stack of blocks.

  With `positions`, learned positions are added first, and a norm comes last.
  `scan` and `remat` as in `layers/transformer.py`.
  """

  depth: int
  num_heads: int
  head_width: int
  mlp_ratio: float
  dropout: float = 0.0
  positions: bool = False
  scan: bool = False
  remat: str = 'none'
  dtype: Any = None

  @nn.compact
  def __call__(
    self, x, train: bool = False, angles=None, kept=None, source=None
  ):
    if self.positions:
      table = self.param('position', nn.initializers.normal(1.0), x.shape[-2:])
      x = x + table.astype(x.dtype)
    block = Block
    if self.remat != 'none':
      block = nn.remat(
        Block,
        policy=REMAT_POLICIES[self.remat],
        prevent_cse=not self.scan,
        static_argnums=(2, 3),
      )
    make = lambda name: block(
      self.num_heads,
      self.head_width,
      self.mlp_ratio,
      self.dropout,
      self.dtype,
      name=name,
    )
    rates = (0.0,) * self.depth
    inputs = (angles, kept, source)
    x = stack(make, x, rates, train, *inputs, scan=self.scan)
    return layer_norm('norm', self.dtype)(x) if self.positions else x


class FusionSF(nn.Module):
  """Tokens of three modalities (`embed`), and power from them (`forecast`).

  Attributes:
    patch_size: (rows, columns) of pixels.
    width: of the tokens.
    depth: of the encoders of all modalities and of the mixer.
    num_heads: of these, as `head_width`.
    head_width: channels of a head.
    mlp_ratio: hidden width of the gated MLP over that of the tokens.
    decoder_width: likewise of the decoder, as `decoder_depth`,
      `decoder_heads` and `decoder_head_width`.
    outputs: channels of the forecast.
    mlp_heads: whose outputs are averaged.
    dropout: rate, while training.
    weather: whether there is a weather forecast.
    max_frequency: of the rotary code.
    periods: of the three numbers of a time.
    rope_order: see `patch_coordinates`.
    scan: one compiled block for each stack of blocks.
    remat: see `layers/transformer.py`.
    dtype: compute dtype.
  """

  patch_size: tuple[int, int] = (8, 8)
  width: int = 64
  depth: int = 12
  num_heads: int = 8
  head_width: int = 64
  mlp_ratio: float = 4.0
  decoder_width: int = 128
  decoder_depth: int = 4
  decoder_heads: int = 6
  decoder_head_width: int = 128
  outputs: int = 1
  mlp_heads: int = 1
  dropout: float = 0.4
  weather: bool = True
  max_frequency: float = 128.0
  periods: tuple[int, ...] = PERIODS
  rope_order: str = 'reference'
  scan: bool = False
  remat: str = 'none'
  dtype: Any = None

  def setup(self):
    width, dtype = self.width, self.dtype
    linear = lambda features, fan_in: dense(features, None, fan_in, dtype)
    norm = lambda: layer_norm(None, dtype)
    common = dict(
      mlp_ratio=self.mlp_ratio,
      dropout=self.dropout,
      scan=self.scan,
      remat=self.remat,
      dtype=dtype,
    )
    encoder = lambda positions: Blocks(
      self.depth,
      self.num_heads,
      self.head_width,
      positions=positions,
      **common,
    )
    self.satellite_encoder, self.mixer = encoder(False), encoder(False)
    self.power_encoder = encoder(True)
    if self.weather:
      self.weather_encoder = encoder(True)
    self.widen = linear(self.decoder_width, width)
    self.decoder = Blocks(
      self.decoder_depth,
      self.decoder_heads,
      self.decoder_head_width,
      positions=True,
      **common,
    )
    self.head_norms = [norm() for _ in range(self.mlp_heads)]
    self.heads = [
      linear(self.outputs, self.decoder_width) for _ in range(self.mlp_heads)
    ]
    # Their inputs are as wide as the data is.
    torch_dense = lambda: TorchDense(width, dtype)
    self.satellite_embed, self.power_embed = torch_dense(), torch_dense()
    if self.weather:
      self.weather_embed = torch_dense()

  def embed(self, batch: Mapping[str, Array]) -> dict[str, Array]:
    """The tokens of the inputs of a batch.

    Args:
      batch: `satellite` [b, t, h, w, c], standardised; `time` int [b, t, 3],
        month (from 1), day (from 1) and hour of the past hours; `power`
        [b, t, c]; with weather `weather` [b, t, k] of the hours to come.

    Returns:
      `satellite` [b, t, n, d], `power` [b, t, d] and `weather` [b, t, d].
    """
    frames = batch['satellite']
    check_divisible(frames.shape[-3:-1], self.patch_size[0])
    code = time_code(batch['time'], self.periods)
    shape = (*frames.shape[:-1], code.shape[-1])
    planes = jnp.broadcast_to(code[..., None, None, :], shape)
    frames = jnp.concatenate([frames, planes.astype(frames.dtype)], -1)
    power = jnp.concatenate([batch['power'], code], -1)
    tokens = {
      'satellite': self.satellite_embed(patches(frames, self.patch_size)),
      'power': self.power_embed(power),
    }
    if self.weather:
      tokens['weather'] = self.weather_embed(batch['weather'])
    return tokens

  def forecast(
    self,
    tokens: Tokens,
    coordinates: Float[Array, 'b h w 2'],
    site: Float[Array, 'b 2'],
    kept: Bool[Array, 'b t n'] | None = None,
    train: bool = False,
  ) -> Float[Array, 'b t o']:
    """Power of the hours to come, at least 0, float32.

    Args:
      tokens: of `embed`, quantised or not.
      coordinates: of the pixels of all frames, about [-1, 1].
      site: of the plant, in the order and the unit of the pixels'.
      kept: patches that are seen; default all.
      train: whether anything is dropped.
    """
    dtype = self.dtype or jnp.float32
    tokens = {name: x.astype(dtype) for name, x in tokens.items()}
    places = patch_coordinates(coordinates, self.patch_size, self.rope_order)
    angles = lambda places: rotary_angles(
      places[:, None], self.head_width, self.max_frequency
    )
    image, plant = angles(places), angles(site[:, None])
    frames = self.satellite_encoder(
      tokens['satellite'], train, (image, image), kept
    )
    hours = self.power_encoder(tokens['power'], train)
    if self.weather:
      # Hour i of the past with hour i of the day to come.
      hours = hours + self.weather_encoder(tokens['weather'], train)
    hours = self.mixer(
      hours[..., None, :], train, (plant, image), kept, frames
    )[..., 0, :]
    x = self.decoder(self.widen(hours), train).astype(jnp.float32)
    outputs = [
      nn.relu(head(norm(x)))
      for norm, head in zip(self.head_norms, self.heads, strict=True)
    ]
    return sum(outputs).astype(jnp.float32) / len(outputs)

  def __call__(
    self, batch: Mapping[str, Array], train: bool = False
  ) -> Float[Array, 'b t o']:
    """The forecast without quantisation: CrossViViT and its variants."""
    tokens = self.embed(batch)
    return self.forecast(
      tokens, batch['coordinates'], batch['site'], train=train
    )


class TorchDense(nn.Module):
  """A linear layer with PyTorch's initialisation for whatever comes in."""

  features: int
  dtype: Any = None

  @nn.compact
  def __call__(self, x: Float[Array, '*b i']) -> Float[Array, '*b o']:
    return dense(self.features, 'fc', x.shape[-1], self.dtype)(x)
