"""GreenMIM: masked image modelling with a hierarchical encoder.

Huang et al., arXiv 2205.13515 (NeurIPS 2022). Masked patches are dropped, and a
Swin Transformer runs on the visible tokens alone (`grouped_swin.py`). A small
decoder puts mask tokens into the gaps and predicts pixels. One mask serves many
images; `window_groups.py` draws them. What it is compared with runs the same
encoder on all patches (`masked_swin.py`). Names of the checkpoints are those of
LayneH/GreenMIM.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from jaxzoo.models.backbones import swin, swin_names
from jaxzoo.models.layers.activation import gelu
from jaxzoo.models.layers.image import normalize
from jaxzoo.models.layers.transformer import Block, BlockInit
from jaxzoo.models.self_supervised import window_groups
from jaxzoo.models.self_supervised.grouped_swin import (
  EPSILON,
  XAVIER,
  XAVIER_QKV,
  GroupedSwin,
  patches,
)
from jaxzoo.models.self_supervised.masked_swin import MaskedSwin, dense
from jaxzoo.system import System, from_loss
from jaxzoo.weights import layout
from jaxzoo.weights import rows as to
from jaxzoo.weights.rows import Row, load, save

SHARDING = swin.SHARDING

# Fields of the encoder.
PUBLISHED = {
  'swin_base_w7': dict(swin.PUBLISHED['Swin-B'], window=7, drop_path=0.0),
  'swin_base_w14': dict(swin.PUBLISHED['Swin-B'], window=14, drop_path=0.0),
  'swin_large_w14': dict(swin.PUBLISHED['Swin-L'], window=14, drop_path=0.0),
}


class Decoder(nn.Module):
  """Pixels of all patches from features of the visible ones.

  Attributes:
    patches: (rows, columns) of the grid.
    outputs: numbers of a patch.
    width: of the blocks.
    depth: how many.
    num_heads: of each.
    dtype: compute dtype.
  """

  grid: tuple[int, int]
  outputs: int
  width: int = 512
  depth: int = 1
  num_heads: int = 16
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self, latent: Float[Array, 'b k d'], places: Int[Array, ' k']
  ) -> Float[Array, 'b n o']:
    """Predictions, float32; latent i is put at patch `places[i]`."""
    dense = lambda features, name: nn.Dense(
      features, kernel_init=XAVIER, dtype=self.dtype, name=name
    )
    seen = dense(self.width, 'embed')(latent)
    token = self.param(
      'mask_token', nn.initializers.normal(0.02), (self.width,)
    )
    count = self.grid[0] * self.grid[1]
    x = jnp.broadcast_to(
      token.astype(seen.dtype), (len(seen), count, self.width)
    )
    x = x.at[:, places].set(seen)
    x = x + sincos_positions(self.grid, self.width).astype(x.dtype)
    for i in range(self.depth):
      x = Block(
        self.num_heads,
        BlockInit(XAVIER_QKV, XAVIER, XAVIER, XAVIER),
        activation=gelu,
        epsilon=EPSILON,
        dtype=self.dtype,
        name=f'block_{i}',
      )(x)
    x = nn.LayerNorm(epsilon=EPSILON, dtype=self.dtype, name='norm')(x)
    return dense(self.outputs, 'pred')(x).astype(jnp.float32)


def sincos_positions(
  grid: tuple[int, int], width: int
) -> Float[np.ndarray, 'n d']:
  """Fixed positions: the first half of the channels has the column, then row.

  Each half is [sin(p w_i), cos(p w_i)] with w_i = 10000^(-i / (d / 4)).
  """
  rate = 10000.0 ** (-np.arange(width // 4) / (width / 4))
  row, column = np.divmod(np.arange(grid[0] * grid[1]), grid[1])
  waves = lambda p: (np.sin(p[:, None] * rate), np.cos(p[:, None] * rate))
  table = np.concatenate([*waves(column), *waves(row)], axis=1)
  return table.astype(np.float32)


def reconstruction_errors(
  prediction: Float[Array, 'b n p'],
  image: Float[Array, 'b h w c'],
  keep: Int[Array, ' k'],
  *,
  side: int,
  normalize_patches: bool = True,
) -> Float[Array, ' b']:
  """Mean squared error of the pixels of masked patches, float32.

  Args:
    prediction: of all patches.
    image: normalised.
    keep: the patches that were visible, which do not count.
    side: of a patch.
    normalize_patches: targets are (t - mean) / sqrt(var + 1e-6) of each patch,
      with the unbiased variance.
  """
  target = patches(image.astype(jnp.float32), side)
  if normalize_patches:
    mean = target.mean(-1, keepdims=True)
    var = target.var(-1, keepdims=True, ddof=1)
    target = (target - mean) * jax.lax.rsqrt(var + 1e-6)
  error = jnp.mean((prediction.astype(jnp.float32) - target) ** 2, axis=-1)
  hidden = jnp.ones(error.shape[1]).at[keep].set(0)
  return (error * hidden).sum(1) / jnp.maximum(hidden.sum(), 1)


def make_modules(config) -> tuple[GroupedSwin, Decoder]:
  """Encoder and decoder of a config, see `build`.

  Raises:
    UserError: depths that are odd, or images that are no whole patches.
  """
  fields = dict(config.encoder)
  fields.pop('drop_path', None)
  for name in ('depths', 'num_heads'):
    fields[name] = tuple(fields[name])
  swin.check_depths(fields['depths'])
  dtype = jnp.dtype(config.dtype)
  encoder = GroupedSwin(
    **fields, scan=config.scan, remat=config.remat, dtype=dtype
  )
  grid = window_groups.patch_grid(tuple(config.image_size), encoder.unit)
  outputs = encoder.unit**2 * 3
  return encoder, Decoder(grid, outputs, **config.decoder, dtype=dtype)


def predict_patches(
  encoder: GroupedSwin,
  decoder: Decoder,
  params: Mapping,
  image: Float[Array, 'b h w c'],
  keep: Int[Array, ' k'],
  groups: Mapping[str, Int[Array, 'g p']],
  *,
  match_reference_order: bool = False,
) -> tuple[Float[Array, 'b k d'], Float[Array, 'b n p']]:
  """(features of the visible patches, pixels of all) under one mask.

  Args:
    encoder: module, as `decoder`.
    decoder: module.
    params: of both, by these names.
    image: normalised.
    keep: in order of their noise.
    groups: of `window_groups.group_stages`.
    match_reference_order: features are in increasing order of their patches,
      but the released code puts them in order of the noise, so that they
      change places at random in every step; True does so, too.
  """
  latent = encoder.apply({'params': params['encoder']}, image, keep, groups)
  places = keep if match_reference_order else jnp.sort(keep)
  return latent, decoder.apply({'params': params['decoder']}, latent, places)


def predict_densely(
  encoder: MaskedSwin,
  decoder: Decoder,
  params: Mapping,
  image: Float[Array, 'b h w c'],
  keep: Int[Array, ' k'],
) -> tuple[Float[Array, 'b n d'], Float[Array, 'b n p']]:
  """(features of all patches, pixels of all), with a token for the masked.

  The encoder sees where patches are missing, so that the decoder has nothing
  to fill in. (SimMIM has a linear layer for a decoder; this one's is
  GreenMIM's, so that the two differ in the encoder's tokens alone.)
  """
  count = decoder.grid[0] * decoder.grid[1]
  masked = jnp.ones(count, bool).at[keep].set(False).reshape(decoder.grid)
  latent = encoder.apply({'params': params['encoder']}, image, masked)
  places = jnp.arange(count)
  return latent, decoder.apply({'params': params['decoder']}, latent, places)


def build(config, tx: optax.GradientTransformation) -> System:
  """GreenMIM as a system, or the dense pre-training that it speeds up.

  A batch has `image` uint8 [b, h, w, 3], and the arrays of
  `window_groups.draw_masks` for m masks: `keep` [m, k] and for stages with
  several groups `groups1`, `groups1_shifted`, ... [m, g, p]. m divides b: image
  i is under mask i // (b / m). On several devices m is a multiple of their
  number; the released code has one a device.

  Args:
    config: `image_size`, `mean` and `std` of the channels, `dtype`, `scan`,
      `remat`, `microbatches`; `encoder`: fields of `GroupedSwin`, such as a row
      of `PUBLISHED`; `decoder`: `width` (512), `depth` (1), `num_heads` (16);
      `norm_pix_loss` (True); `match_reference_order` (False), see
      `predict_patches`; `visible_only` (True): False runs the encoder on all
      patches, see `predict_densely`.
    tx: the optimizer. Weights that decay have two dimensions or more, tables of
      positions and the mask token left out.

  Returns:
    The system. Under masks it predicts `latent` [b, k, d] (of all patches
    where they are seen), `prediction` [b, n, p], normalised pixels of each
    patch with `norm_pix_loss`, `loss` [b], and `vector` [b, d], the mean of
    the latent; of a batch without `keep` the `vector` alone, by Swin on the
    whole image. All are float32.

  Raises:
    UserError: see `make_modules`.
  """
  encoder, decoder = make_modules(config)
  on_all = dense(encoder)

  def look(params, image, keep, groups):
    """(latent, prediction, errors) of images under one mask."""
    if config.visible_only:
      latent, prediction = predict_patches(
        encoder,
        decoder,
        params,
        image,
        keep,
        groups,
        match_reference_order=config.match_reference_order,
      )
    else:
      latent, prediction = predict_densely(on_all, decoder, params, image, keep)
    errors = reconstruction_errors(
      prediction,
      image,
      keep,
      side=encoder.unit,
      normalize_patches=config.norm_pix_loss,
    )
    return latent.astype(jnp.float32), prediction, errors

  def under_masks(params, batch):
    image = normalize(batch['image'], config.mean, config.std)
    one = functools.partial(look, params)
    found = map_masks(one, {**batch, 'image': image})
    return [x.reshape(-1, *x.shape[2:]) for x in found]

  def loss(params, extra, batch, rng):
    del rng
    *_, errors = under_masks(params, batch)
    return errors.mean(), (extra, {})

  def predict(params, extra, batch):
    del extra
    if 'keep' not in batch:
      image = normalize(batch['image'], config.mean, config.std)
      latent = on_all.apply({'params': params['encoder']}, image, None)
      return {'vector': latent.mean(1, dtype=jnp.float32)}
    latent, prediction, errors = under_masks(params, batch)
    return {
      'latent': latent,
      'prediction': prediction,
      'loss': errors,
      'vector': latent.mean(1),
    }

  init = functools.partial(
    init_params, encoder, decoder, mask_token=not config.visible_only
  )
  return from_loss(init, loss, predict, tx, microbatches=config.microbatches)


def init_params(
  encoder: GroupedSwin,
  decoder: Decoder,
  rng: jax.Array,
  batch: Mapping,
  *,
  mask_token: bool = False,
) -> tuple[dict, dict]:
  """(parameters of both, {}) for the shapes of a batch.

  `mask_token`: that of the encoder on all patches, too; of one key, the other
  parameters are the same without it.
  """
  rngs = jax.random.split(rng, 3)
  first = lambda x: jnp.zeros(x.shape[1:], x.dtype)
  keep, groups = first(batch['keep']), jax.tree.map(first, _groups(batch))
  image = jnp.zeros((1, *batch['image'].shape[1:]))
  encode = dict(encoder.init(rngs[0], image, keep, groups)['params'])
  latent = jnp.zeros((1, *keep.shape, encoder.output_width))
  decode = decoder.init(rngs[1], latent, keep)['params']
  if mask_token:
    token = nn.initializers.normal(0.02)(rngs[2], (encoder.width,))
    encode['mask_token'] = token
  return {'encoder': encode, 'decoder': decode}, {}


def map_masks(function: Callable, batch: Mapping[str, jax.Array]) -> Any:
  """`function(image, keep, groups)` for each mask and its share of the images.

  Returns:
    The results, with a leading axis of masks.

  Raises:
    ValueError: images that do not divide over the masks.
  """
  image, masks = batch['image'], len(batch['keep'])
  if len(image) % masks:
    raise ValueError(f'{len(image)} images do not divide over {masks} masks')
  image = image.reshape(masks, -1, *image.shape[1:])
  return jax.vmap(function)(image, batch['keep'], _groups(batch))


def _groups(batch):
  return {name: x for name, x in batch.items() if name.startswith('groups')}


def rows(encoder: GroupedSwin | MaskedSwin, decoder: Decoder) -> list[Row]:
  """LayneH/GreenMIM's names, and SimMIM's for a mask token of the encoder."""
  found = swin_names.encoder_rows(encoder, 'encoder.', 'encoder/')
  token = to.reshaped((1, 1, -1), (-1,))
  if isinstance(encoder, MaskedSwin):
    found += to.tensor('encoder.mask_token', 'encoder/mask_token', token)
  found += to.tensor('mask_token', 'decoder/mask_token', token)
  found += to.linear('decoder_embed', 'decoder/embed')
  for i in range(decoder.depth):
    theirs, ours = f'decoder_blocks.{i}', f'decoder/block_{i}'
    found += [
      *to.norm(f'{theirs}.norm1', f'{ours}/ln_1'),
      *to.projections(
        f'{theirs}.attn.qkv',
        f'{ours}/attn',
        ('query', 'key', 'value'),
        decoder.num_heads,
      ),
      *to.from_heads(
        f'{theirs}.attn.proj', f'{ours}/attn/out', decoder.num_heads
      ),
      *to.norm(f'{theirs}.norm2', f'{ours}/ln_2'),
      *to.linear(f'{theirs}.mlp.fc1', f'{ours}/mlp/fc1'),
      *to.linear(f'{theirs}.mlp.fc2', f'{ours}/mlp/fc2'),
    ]
  found += to.norm('decoder_norm', 'decoder/norm')
  return found + to.linear('decoder_pred', 'decoder/pred')


def name_map(config) -> list[Row]:
  """`rows` of a config."""
  encoder, decoder = make_modules(config)
  return rows(encoder if config.visible_only else dense(encoder), decoder)


def convert(state_dict: Mapping[str, np.ndarray], config) -> dict:
  """A published checkpoint as parameters, `encoder` and `decoder`.

  The fixed positions of the decoder are left out; tables of relative positions
  are resized to the windows of the config's image size.
  """
  encoder, decoder = make_modules(config)
  tensors = {
    name: x for name, x in state_dict.items() if name != 'decoder_pos_embed'
  }
  flat = layout.flatten(load(tensors, name_map(config)))
  sides = [plan.window for plan in encoder.plans(decoder.grid, 1)]
  params = layout.unflatten(swin_names.resize_tables(flat, sides))['params']
  if config.scan:
    for i, depth in enumerate(encoder.depths, 1):
      if depth > 2:
        stage = params['encoder'][f'stage{i}']
        params['encoder'][f'stage{i}'] = layout.stack_blocks(stage)
  return params


def export(params: Mapping, extra: Mapping, config) -> dict[str, np.ndarray]:
  """Parameters as a published checkpoint: `convert` undone.

  `create_model('swin_base', weights=...)`, or `init.weights` of a classifier,
  takes its encoder for fine-tuning. `extra` is not read.
  """
  del extra
  return save(layout.unstack_blocks({'params': params}), name_map(config))
