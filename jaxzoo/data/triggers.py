"""Backdoor triggers: what an attacker adds to a picture.

Pure functions of a picture in [0, 1], float32 [h, w, c], as the literature that
`pbe` (arXiv 2202.06312) compares with defines them: a patch (BadNets, arXiv
1708.06733), a blended picture (arXiv 1712.05526), a sinusoidal signal (SIG,
arXiv 1902.11237) and a warp (WaNet, arXiv 2102.10369).
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float

from jaxzoo.errors import UserError, nearest

Picture = Float[np.ndarray, 'h w c']
KINDS = ('patch', 'blend', 'sig', 'warp')

# White places of the 3x3 checkerboard, from the lower right corner; the other
# five are black.
_WHITE = ((-1, -1), (-1, -3), (-2, -2), (-3, -1))
_CUBIC = -0.75  # of the kernel, as PyTorch's


def patch(image: Picture) -> Picture:
  """A 3x3 checkerboard in the lower right corner."""
  image = np.array(image)
  image[-3:, -3:] = 0
  for row, column in _WHITE:
    image[row, column] = 1
  return image


def blend(image: Picture, pattern: Picture, ratio: float = 0.1) -> Picture:
  """(1 - ratio) image + ratio pattern."""
  return (1 - ratio) * image + ratio * pattern


def signal(image: Picture, delta: float = 10, frequency: int = 6) -> Picture:
  """A wave along the width: + delta / 255 sin(2 pi j f / w), clipped."""
  width = image.shape[1]
  wave = np.sin(2 * np.pi * np.arange(width) * frequency / width)
  wave = np.float32(delta / 255 * wave)[None, :, None]
  return np.clip(image + wave, 0, 1)


def warp_grid(
  control: Float[np.ndarray, '2 k k'],
  height: int,
  width: int,
  strength: float = 0.5,
) -> Float[np.ndarray, 'h w 2']:
  """Where a warped picture takes its pixels from, (x, y) in [-1, 1].

  Args:
    control: uniform in [-1, 1]; divided by its mean absolute value, then made
      as large as the picture by cubic interpolation, corners on corners.
    height: of the picture.
    width: likewise.
    strength: s of identity + s noise / height.
  """
  noise = control / np.mean(np.abs(control))
  noise = _cubic(_cubic(noise, height, 1), width, 2)
  noise = np.moveaxis(noise, 0, -1)
  grid = identity_grid(height, width) + strength * noise / height
  return np.clip(grid, -1, 1).astype(np.float32)


def identity_grid(height: int, width: int) -> Float[np.ndarray, 'h w 2']:
  """(x, y) of every pixel."""
  y, x = np.meshgrid(
    np.linspace(-1, 1, height), np.linspace(-1, 1, width), indexing='ij'
  )
  return np.stack([x, y], -1)


def _cubic(values: np.ndarray, size: int, axis: int) -> np.ndarray:
  """An axis made as long as `size` by cubic convolution."""
  old = values.shape[axis]
  place = np.arange(size) * (old - 1) / (size - 1)
  first = np.floor(place).astype(int)
  result = 0
  for offset in range(-1, 3):
    distance = np.abs(place - first - offset)
    near = (_CUBIC + 2) * distance**3 - (_CUBIC + 3) * distance**2 + 1
    far = _CUBIC * (distance**3 - 5 * distance**2 + 8 * distance - 4)
    weight = np.where(distance <= 1, near, far)
    taken = np.take(values, np.clip(first + offset, 0, old - 1), axis)
    shape = [1] * values.ndim
    shape[axis] = size
    result = result + taken * weight.reshape(shape)
  return result


def sample(image: Picture, grid: Float[np.ndarray, 'h w 2']) -> Picture:
  """The picture at the places of the grid, bilinear, 0 outside."""
  height, width = image.shape[:2]
  x = (grid[..., 0] + 1) * (width - 1) / 2
  y = (grid[..., 1] + 1) * (height - 1) / 2
  left, top = np.floor(x).astype(int), np.floor(y).astype(int)
  result = np.zeros((*grid.shape[:2], image.shape[2]), np.float32)
  for row, column in ((0, 0), (0, 1), (1, 0), (1, 1)):
    i, j = top + row, left + column
    weight = (1 - np.abs(y - i)) * (1 - np.abs(x - j))
    inside = (i >= 0) & (i < height) & (j >= 0) & (j < width)
    taken = image[np.clip(i, 0, height - 1), np.clip(j, 0, width - 1)]
    result += (weight * inside)[..., None].astype(np.float32) * taken
  return result


def warp_noise(
  grid: Float[np.ndarray, 'h w 2'], rng: np.random.Generator
) -> Float[np.ndarray, 'h w 2']:
  """The grid disturbed by up to a pixel: WaNet's noise mode.

  Pictures warped by it keep their labels, so that the network learns the
  warp itself and not that there is one.
  """
  shift = rng.uniform(-1, 1, grid.shape) / grid.shape[0]
  return np.clip(grid + shift, -1, 1).astype(np.float32)


def make_trigger(
  kind: str,
  height: int,
  width: int,
  *,
  seed: int = 0,
  blend_ratio: float = 0.1,
  sig_delta: float = 10,
  sig_frequency: int = 6,
  warp_points: int = 4,
  warp_strength: float = 0.5,
) -> tuple[Callable[[Picture], Picture], Callable | None]:
  """(trigger, noise mode) of an attack.

  Args:
    kind: one of `KINDS`.
    height: of the pictures.
    width: likewise.
    seed: of the pattern that is blended in, of the warp.
    blend_ratio: see `blend`.
    sig_delta: see `signal`, as `sig_frequency`.
    sig_frequency: waves along the width.
    warp_points: control points each way.
    warp_strength: see `warp_grid`.

  Returns:
    trigger: picture -> picture; noise mode: (picture, rng) -> picture, of a
    warp alone, else None.

  Raises:
    UserError: no such kind.
  """
  if kind not in KINDS:
    raise UserError(f'attack.kind: no {kind!r}; ' + nearest(kind, KINDS))
  rng = np.random.default_rng([seed, KINDS.index(kind)])
  if kind == 'patch':
    return patch, None
  if kind == 'blend':
    pattern = rng.uniform(size=(height, width, 1)).astype(np.float32)
    return lambda image: blend(image, pattern, blend_ratio), None
  if kind == 'sig':
    return lambda image: signal(image, sig_delta, sig_frequency), None
  control = rng.uniform(-1, 1, (2, warp_points, warp_points))
  grid = warp_grid(control, height, width, warp_strength)
  return (
    lambda image: sample(image, grid),
    lambda image, rng: sample(image, warp_noise(grid, rng)),
  )
