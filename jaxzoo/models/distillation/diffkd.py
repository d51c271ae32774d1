"""DiffKD: the student's feature as a noisy teacher's (NeurIPS 2023).

Huang et al., arXiv 2305.15712. A small diffusion network learns the teacher's
features; a few of its denoising steps turn the student's feature into a refined
one, which is compared with the teacher's. The student learns through the steps;
nothing of this is left at inference.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxzoo.models.layers.convolution import (
  TORCH_DEFAULT,
  conv,
  global_pool,
  uniform_bias,
)
from jaxzoo.models.layers.norm import BatchNorm, at_least_float32
from jaxzoo.models.losses.distillation import (
  feature_matching,
  knowledge_distillation,
)
from jaxzoo.weights import rows as to
from jaxzoo.weights.rows import Row

TIMES = 1280  # rows of the table of times, of which 1000 are used


class Draws(NamedTuple):
  """What is random in one forward pass, float32.

  Attributes:
    noise: mixed into the student's feature.
    teacher_noise: added to the teacher's, for the diffusion network to learn.
    time: of the teacher's, int32 in [0, 1000).
  """

  noise: Float[Array, 'b h w c']
  teacher_noise: Float[Array, 'b h w c']
  time: Int[Array, ' b']


class Refined(NamedTuple):
  """What one distilled feature gives.

  Attributes:
    refined: the student's feature, denoised.
    target: what it shall be; no gradient.
    gamma: share of the student's feature in what is denoised, of each image.
    terms: losses by name: 'kd', 'diffusion', and 'reconstruction' with an
      autoencoder.
  """

  refined: Float[Array, 'b h w c']
  target: Float[Array, 'b h w c']
  gamma: Float[Array, ' b']
  terms: dict[str, Float[Array, '']]


def cumulative_alphas(count: int = 1000) -> Float[np.ndarray, ' t']:
  """abar_t = prod_{s <= t} (1 - beta_s), beta linear from 1e-4 to 0.02."""
  betas = np.linspace(1e-4, 0.02, count)
  return np.cumprod(1 - betas).astype(np.float32)


def denoise(
  predict_noise, x: Float[Array, 'b h w c'], steps: int, count: int = 1000
) -> Float[Array, 'b h w c']:
  """The last `steps` of 2 `steps` deterministic DDIM steps (eta 0, no clip).

  x0 = (x - sqrt(1 - abar_t) e) / sqrt(abar_t), then
  x <- sqrt(abar_s) x0 + sqrt(1 - abar_s) e at the next time s; the last step
  returns x0.

  Args:
    predict_noise: (x, time int32 [b]) -> e.
    x: the noisy feature.
    steps: 5 as published.
    count: times of the diffusion.
  """
  alphas, stride = cumulative_alphas(count), count // (2 * steps)
  for i in reversed(range(steps)):
    time = stride * i
    noise = predict_noise(x, jnp.full(x.shape[:1], time, jnp.int32))
    alpha = alphas[time]
    clean = (x - np.sqrt(1 - alpha) * noise) / np.sqrt(alpha)
    after = alphas[time - stride] if time >= stride else np.float32(1)
    x = np.sqrt(after) * clean + np.sqrt(1 - after) * noise
  return x


def add_noise(
  x: Float[Array, 'b h w c'],
  noise: Float[Array, 'b h w c'],
  time: Int[Array, ' b'],
  count: int = 1000,
) -> Float[Array, 'b h w c']:
  """sqrt(abar_t) x + sqrt(1 - abar_t) noise."""
  alpha = jnp.asarray(cumulative_alphas(count))[time][:, None, None, None]
  return jnp.sqrt(alpha) * x + jnp.sqrt(1 - alpha) * noise


class Branch(nn.Module):
  """Convolutions, each with a batch norm and, but for the last, a ReLU.

  Attributes:
    layers: (channels, kernel size, whether a norm follows, whether a ReLU
      does).
  """

  layers: tuple[tuple[int, int, bool, bool], ...]
  dtype: Any = None

  @nn.compact
  def __call__(
    self, x: Float[Array, 'b h w c'], train: bool = True
  ) -> Float[Array, 'b h w o']:
    for i, (channels, size, normed, rectified) in enumerate(self.layers, 1):
      x = conv(
        channels,
        size,
        bias=True,
        kernel_init=TORCH_DEFAULT,
        bias_init=uniform_bias(size * size * x.shape[-1]),
        dtype=self.dtype,
        name=f'conv{i}',
      )(x)
      if normed:
        x = BatchNorm(name=f'bn{i}')(x, train)
      x = nn.relu(x) if rectified else x
    return x


def bottleneck(channels: int, reduction: int) -> Branch:
  """1x1 to c / r, 3x3, 1x1 to c: what is added to its input."""
  inner = channels // reduction
  return Branch(
    (
      (inner, 1, True, True),
      (inner, 3, True, True),
      (channels, 1, True, False),
    )
  )


class Denoiser(nn.Module):
  """(feature, time) -> the noise in it.

  Attributes:
    channels: of the feature.
    kernel_size: 3 for maps, 1 for logits.
    dtype: compute dtype.
  """

  channels: int
  kernel_size: int = 3

  def setup(self):
    c = self.channels
    self.time_embedding = nn.Embed(
      TIMES, c, embedding_init=nn.initializers.normal(1.0)
    )
    if self.kernel_size == 3:
      self.block1, self.block2 = bottleneck(c, 4), bottleneck(c, 4)
      self.out = Branch(((c, 1, True, False),))
    else:
      self.out = Branch(
        (
          (4 * c, 1, True, True),
          (c, 1, True, False),
          (4 * c, 1, True, True),
          (c, 1, False, False),
        )
      )

  def __call__(
    self,
    x: Float[Array, 'b h w c'],
    time: Int[Array, ' b'],
    train: bool = True,
  ) -> Float[Array, 'b h w c']:
    x = x + self.time_embedding(time)[:, None, None]
    if self.kernel_size == 3:
      x = x + self.block1(x, train)
      x = x + self.block2(x, train)
    return self.out(x, train)


class NoiseAdapter(nn.Module):
  """gamma in (0, 1) for each image: how much of its feature is signal."""

  channels: int
  kernel_size: int = 3

  def setup(self):
    c = self.channels
    if self.kernel_size == 3:
      self.block = bottleneck(c, 8)
    else:
      self.block = Branch(((2 * c, 1, True, True), (c, 1, True, False)))
    self.out = nn.Dense(2, kernel_init=TORCH_DEFAULT, bias_init=uniform_bias(c))

  def __call__(
    self, x: Float[Array, 'b h w c'], train: bool = True
  ) -> Float[Array, ' b']:
    y = self.block(x, train)
    vector = global_pool(x + y if self.kernel_size == 3 else y)
    # A softmax of two, not one sigmoid: the published parameters.
    return jax.nn.softmax(self.out(vector))[:, 0]


class DiffKD(nn.Module):
  """One distilled feature or logits; logits are maps of one position.

  Attributes:
    student_channels: of the student's feature.
    teacher_channels: of the teacher's.
    kernel_size: 3 for maps, compared by their mean squared error; 1 for
      logits, compared by the divergence of their softmax.
    code_channels: of the autoencoder on the teacher's feature, 1024 as
      published; 0: none, as for logits.
    steps: of denoising.
    temperature: of the divergence.
    timesteps: of the diffusion.
  """

  student_channels: int
  teacher_channels: int
  kernel_size: int = 3
  code_channels: int = 0
  steps: int = 5
  temperature: float = 1.0
  timesteps: int = 1000

  @property
  def channels(self) -> int:
    """Of what is denoised."""
    return self.code_channels or self.teacher_channels

  def setup(self):
    c = self.channels
    self.trans = Branch(((c, 1, False, False),))
    if self.code_channels:
      self.encoder = Branch(((c, 1, True, False),))
      self.decoder = Branch(((self.teacher_channels, 1, False, False),))
    self.denoiser = Denoiser(c, self.kernel_size)
    self.noise_adapter = NoiseAdapter(c, self.kernel_size)
    self.proj = Branch(((c, 1, True, False),))

  def draws(self, rng: jax.Array, shape: tuple[int, ...]) -> Draws:
    """Random inputs for features [b, h, w, ...] of this shape."""
    size = (*shape[:-1], self.channels)
    keys = jax.random.split(rng, 3)
    return Draws(
      jax.random.normal(keys[0], size),
      jax.random.normal(keys[1], size),
      jax.random.randint(keys[2], size[:1], 0, self.timesteps),
    )

  def __call__(
    self,
    student: Float[Array, 'b h w s'],
    teacher: Float[Array, 'b h w t'],
    draws: Draws,
    train: bool = True,
  ) -> Refined:
    """Refines the student's feature and compares it; needs batch statistics.

    The denoiser runs steps + 1 times, and its running statistics, which
    nothing reads, take in each.
    """
    student, teacher = (
      x.astype(at_least_float32(x)) for x in (student, teacher)
    )
    teacher = jax.lax.stop_gradient(teacher)
    terms = {}
    target = teacher
    if self.code_channels:
      code = self.encoder(teacher, train)
      terms['reconstruction'] = feature_matching(self.decoder(code), teacher)
      target = jax.lax.stop_gradient(code)
    x = self.trans(student)
    gamma = self.noise_adapter(x, train)
    share = gamma[:, None, None, None]
    # gamma and 1 - gamma, not their roots: as published.
    x = share * x + (1 - share) * draws.noise
    predict_noise = lambda x, time: self.denoiser(x, time, train)
    x = denoise(predict_noise, x, self.steps, self.timesteps)
    refined = self.proj(x, train)

    noisy = add_noise(target, draws.teacher_noise, draws.time, self.timesteps)
    found = predict_noise(noisy, draws.time)
    terms['diffusion'] = feature_matching(found, draws.teacher_noise)
    if self.kernel_size == 3:
      terms['kd'] = feature_matching(refined, target)
    else:
      terms['kd'] = knowledge_distillation(
        refined.reshape(-1, self.channels),
        target.reshape(-1, self.channels),
        self.temperature,
      )
    return Refined(refined, target, gamma, terms)


def rows(module: DiffKD) -> list[Row]:
  """The names of the released code."""
  maps = module.kernel_size == 3
  found = [
    *to.conv('trans', 'trans/conv1', bias=True),
    *to.tensor('model.time_embedding.weight', 'denoiser/time_embedding/embedding'),
    *to.linear('noise_adapter.pred', 'noise_adapter/out'),
    *_branch('proj', 'proj', (0,), (1,)),
  ]  # fmt: skip
  if module.code_channels:
    found += _branch('ae.encoder', 'encoder', (0,), (1,))
    found += to.conv('ae.decoder.0', 'decoder/conv1', bias=True)
  blocks = {'noise_adapter.feat.0.block': 'noise_adapter/block'}
  if maps:
    blocks |= {
      f'model.pred.{i}.block': f'denoiser/block{i + 1}' for i in range(2)
    }
    for theirs, ours in blocks.items():
      found += _branch(theirs, ours, (0, 3, 6), (1, 4, 7))
    return found + _branch('model.pred', 'denoiser/out', (2,), (3,))
  found += _branch('noise_adapter.feat', 'noise_adapter/block', (0, 3), (1, 4))
  return found + _branch('model.pred', 'denoiser/out', (0, 3, 5, 8), (1, 4, 6))


def _branch(theirs, ours, convs, norms) -> list[Row]:
  """Rows of a `Branch` whose layers have these numbers in the released code."""
  found = []
  for i, number in enumerate(convs, 1):
    found += to.conv(f'{theirs}.{number}', f'{ours}/conv{i}', bias=True)
  for i, number in enumerate(norms, 1):
    found += to.batch_norm(f'{theirs}.{number}', f'{ours}/bn{i}')
  return found
