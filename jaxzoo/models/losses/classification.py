"""Losses on logits of classes, and what mixes examples and their targets."""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int


def soft_targets(
  labels: Int[Array, ' b'], num_classes: int, smoothing: float = 0.0
) -> Float[Array, 'b k']:
  """(1 - s) onehot(y) + s / k: label smoothing over all classes."""
  onehot = jax.nn.one_hot(labels, num_classes, dtype=jnp.float32)
  return (1 - smoothing) * onehot + smoothing / num_classes


def spread_targets(
  labels: Int[Array, ' b'], num_classes: int, smoothing: float = 0.0
) -> Float[Array, 'b k']:
  """(1 - s) onehot(y) + s / (k - 1) (1 - onehot(y)): on the other classes.

  The smoothing of DCD's released code (arXiv 2103.08756): a target keeps 1 - s,
  where `soft_targets` leaves it s / k more.
  """
  onehot = jax.nn.one_hot(labels, num_classes, dtype=jnp.float32)
  others = smoothing / (num_classes - 1)
  return others + (1 - smoothing - others) * onehot


def cross_entropy(
  logits: Float[Array, 'b k'], targets: Float[Array, 'b k']
) -> Float[Array, '']:
  """-sum_k t_k log softmax(z)_k, the mean over the batch, in float32 or wider.

  `targets` are distributions, from `soft_targets` or mixed.
  """
  wide = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
  log_p = jax.nn.log_softmax(wide, axis=-1)
  return -jnp.mean(jnp.sum(targets * log_p, axis=-1))


def binary_cross_entropy(
  logits: Float[Array, 'b k'], targets: Float[Array, 'b k']
) -> Float[Array, '']:
  """Every class a question of its own: the mean over batch and classes.

  -t log sigmoid(z) - (1 - t) log sigmoid(-z), float32. With mixed targets both
  classes of an image may be present at once (arXiv 2110.00476, section 2.1).
  """
  logits = logits.astype(jnp.float32)
  return jnp.mean(optax.sigmoid_binary_cross_entropy(logits, targets))


def mixing_weights(
  rng: jax.Array,
  height: int,
  width: int,
  *,
  mixup: float = 0.0,
  cutmix: float = 0.0,
  switch: float = 0.5,
  prob: float = 1.0,
) -> Float[Array, 'h w']:
  """What share of every pixel an image keeps; the rest is its partner's.

  Mixup (arXiv 1710.09412): lambda everywhere. CutMix (arXiv 1905.04899): 0 in
  a box with sides sqrt(1 - lambda) of the image's around a uniform centre,
  clipped at the border, and 1 outside. Either way the mean of the weights is
  the share of the image's own target. One draw for the whole batch, as in the
  code of DeiT (arXiv 2012.12877).

  Args:
    rng: a key.
    height: of the images.
    width: of the images.
    mixup: a of lambda ~ Beta(a, a); 0: no mixup.
    cutmix: likewise; 0: no CutMix.
    switch: probability of CutMix where there are both.
    prob: of mixing at all.
  """
  plain = jnp.ones((height, width), jnp.float32)
  if not mixup and not cutmix:
    return plain
  keys = jax.random.split(rng, 5)
  # Where one of the two is off, the other is always chosen.
  share = switch if mixup and cutmix else float(cutmix > 0)
  boxed = jax.random.bernoulli(keys[0], share)
  a = jnp.where(boxed, cutmix or mixup, mixup or cutmix)
  kept = jax.random.beta(keys[1], a, a)
  box = jnp.outer(_cut(keys[2], height, kept), _cut(keys[3], width, kept))
  weights = jnp.where(boxed, 1 - box, kept)
  return jnp.where(jax.random.bernoulli(keys[4], prob), weights, plain)


def _cut(rng, size: int, kept) -> Float[Array, ' n']:
  """1 where CutMix's box lies along one side of the image, else 0."""
  half = (size * jnp.sqrt(1 - kept)).astype(jnp.int32) // 2
  centre = jax.random.randint(rng, (), 0, size)
  place = jnp.arange(size)
  inside = (place >= centre - half) & (place < centre + half)
  return inside.astype(jnp.float32)


def mix(
  x: Float[Array, 'b ...'], share: Float[Array, '...']
) -> Float[Array, 'b ...']:
  """share x + (1 - share) (the batch in reverse order).

  The partner of example i is b - 1 - i: over a sharded batch every device gets
  the part of one other device, no all-to-all.
  """
  return share * x + (1 - share) * x[::-1]


def ramped_alpha(
  epoch: Float[Array, ''], alpha: float = 0.2, epochs: float = 100.0
) -> Float[Array, '']:
  """alpha min(epoch / epochs, 1): mixup that comes in slowly.

  The schedule of DCD's released code (arXiv 2103.08756).
  """
  return alpha * jnp.clip(epoch / epochs, 0, 1)


def mixup_share(rng: jax.Array, alpha: Float[Array, '']) -> Float[Array, '']:
  """lambda ~ Beta(alpha, alpha), one for the batch; 1 at an alpha of 0.

  `alpha` may be traced, as that of a schedule is. For `mix`, of images and of
  targets: the loss is linear in them.
  """
  drawn = jax.random.beta(rng, *2 * (jnp.maximum(alpha, 1e-3),))
  return jnp.where(alpha > 0, drawn, 1.0)
