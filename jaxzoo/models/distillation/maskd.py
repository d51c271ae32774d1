"""MasKD: feature distillation inside learned masks (ICLR 2023).

Huang et al., arXiv 2205.14589. A few receptive tokens learn on the frozen
teacher which pixels it needs; the student then copies features there only.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxzoo.models.layers.convolution import conv, global_pool
from jaxzoo.models.layers.norm import at_least_float32
from jaxzoo.weights import rows as to
from jaxzoo.weights.rows import Row

# Normal with variance 2 / (k² out), for the importance head.
FAN_OUT = nn.initializers.variance_scaling(
  2.0, 'fan_out', 'normal', in_axis=-2, out_axis=-1
)


class Masks(NamedTuple):
  """What the tokens say of a feature map.

  Attributes:
    masks: of each token, in (0, 1).
    weights: importance of each token, summing to 1; None without a head.
  """

  masks: Float[Array, 'b t h w']
  weights: Float[Array, 'b t'] | None


class MaskModule(nn.Module):
  """The receptive tokens of one level.

  M_t(h, w) = sigmoid(e_t . F(h, w)), without scaling.

  Attributes:
    channels: of the feature.
    num_tokens: 6 for detection, 8 for segmentation.
    weighted: whether there is a head for the importance of tokens: 3x3,
      global pool, 1x1, softmax.
  """

  channels: int
  num_tokens: int
  weighted: bool = False

  def setup(self):
    self.tokens = self.param(
      'tokens',
      nn.initializers.normal(0.01),
      (self.num_tokens, self.channels),
    )
    if self.weighted:
      self.conv = conv(
        self.channels, 3, bias=True, kernel_init=FAN_OUT, name='conv'
      )
      self.out = nn.Dense(self.num_tokens, kernel_init=FAN_OUT)

  def masks(self, feature: Float[Array, 'b h w c']) -> Float[Array, 'b t h w']:
    """The masks alone."""
    feature = feature.astype(at_least_float32(feature))
    return jax.nn.sigmoid(jnp.einsum('bhwc,tc->bthw', feature, self.tokens))

  def __call__(self, feature: Float[Array, 'b h w c']) -> Masks:
    """Masks, and weights where there is a head."""
    masks = self.masks(feature)
    if not self.weighted:
      return Masks(masks, None)
    feature = feature.astype(at_least_float32(feature))
    return Masks(
      masks, jax.nn.softmax(self.out(global_pool(self.conv(feature))))
    )


def masked_feature(
  feature: Float[Array, 'b h w c'], found: Masks
) -> Float[Array, 'b h w c']:
  """F' = F * sum_t w_t M_t: what the rest of the teacher sees in stage 1.

  Without weights the plain sum over the masks. Summed before it multiplies: no
  array has tokens and channels.
  """
  masks = found.masks
  if found.weights is not None:
    masks = masks * found.weights[:, :, None, None]
  return feature * masks.sum(1)[..., None]


def dice(masks: Float[Array, 'b t h w']) -> Float[Array, '']:
  """How much the masks of different tokens overlap, in [0, 1].

  The mean over images and ordered pairs t != u of
  2 sum M_t M_u / (sum M_t² + sum M_u²), 1e-12 added to each sum of squares.
  """
  flat = masks.reshape(*masks.shape[:2], -1)
  products = jnp.einsum('btp,bup->btu', flat, flat)
  squares = jnp.diagonal(products, axis1=1, axis2=2) + 1e-12
  overlap = 2 * products / (squares[:, :, None] + squares[:, None])
  count = masks.shape[1]
  apart = 1 - jnp.eye(count)
  return jnp.sum(overlap * apart) / (masks.shape[0] * count * (count - 1))


def masked_errors(
  student: Float[Array, 'b h w c'],
  teacher: Float[Array, 'b h w c'],
  masks: Float[Array, 'b t h w'],
  epsilon: float = 0.0,
) -> Float[Array, 'b t c']:
  """d_tc = sum_hw (M_t (S - F))²_c / (sum_hw M_t + epsilon).

  The mask is squared above and plain below, as published. The product over
  positions is a matrix product: T times less memory than masked features.
  """
  wide = lambda x: x.astype(at_least_float32(x))
  error = wide(student) - jax.lax.stop_gradient(wide(teacher))
  summed = jnp.einsum('bthw,bhwc->btc', masks * masks, error * error)
  return summed / (masks.sum((2, 3))[..., None] + epsilon)


def detection_loss(
  student: Float[Array, 'b h w c'],
  teacher: Float[Array, 'b h w c'],
  found: Masks,
  student_masks: Float[Array, 'b t h w'] | None = None,
  custom: Any = True,
) -> Float[Array, '']:
  """mean_b sum_t w_t mean_c d_tc of one level of a pyramid, see `masked_errors`.

  Args:
    student: its feature, aligned to the teacher's channels.
    teacher: its feature.
    found: masks and weights of the teacher's feature, constants here; without
      weights the loss is the mean over images, tokens and channels.
    student_masks: of the student's feature: they multiply the teacher's, and
      get no gradient.
    custom: whether they do, a bool or a bool array: from the iteration on
      that ends the warm-up.
  """
  masks, weights = jax.lax.stop_gradient(found)
  if student_masks is not None:
    own = jax.lax.stop_gradient(student_masks)
    masks = jnp.where(custom, masks * own, masks)
  errors = masked_errors(student, teacher, masks).mean(-1)
  if weights is None:
    return errors.mean()
  return (errors * weights).sum(1).mean()


def segmentation_loss(
  student: Float[Array, 'b h w c'],
  teacher: Float[Array, 'b h w c'],
  masks: Float[Array, 'b t h w'],
) -> Float[Array, '']:
  """Half the mean of d over images, tokens and channels, of output logits."""
  masks = jax.lax.stop_gradient(masks)
  return 0.5 * masked_errors(student, teacher, masks, epsilon=1e-5).mean()


def rows(module: MaskModule, prefix: str = '') -> list[Row]:
  """The names of the released code."""
  found = to.tensor(f'{prefix}mask_token', 'tokens')
  if module.weighted:
    found += to.conv(f'{prefix}prob.0', 'conv', bias=True)
    found += to.pointwise(f'{prefix}prob.2', 'out')
  return found
