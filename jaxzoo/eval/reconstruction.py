"""Masked pre-training: how well hidden patches of new pictures are filled in."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int, UInt8

from jaxzoo.data import masked_images as data
from jaxzoo.data.transforms import compose
from jaxzoo.errors import CorruptRecord
from jaxzoo.eval import pictures
from jaxzoo.eval.evaluator import Evaluation
from jaxzoo.eval.knn import subset

GREY = 128  # of what is hidden


def make_evaluator(
  config, *, split: str = 'test', limit: int = 1000, sheet: int = 9
):
  """An evaluator of held-out pictures, each under a mask that never changes.

  Args:
    config: of the run.
    split: its files are found at once, so that a wrong path fails before
      anything is compiled.
    limit: pictures, spread evenly over the split, whose predictions are kept in
      memory; 0: all.
    sheet: pictures that are shown.

  Returns:
    predict -> Evaluation with `loss`, the mean over pictures of the training
    loss, and the picture `reconstructions`: picture, masked, filled in.
  """
  source, steps = data.eval_data(config, split)
  source = subset(source, limit)
  prepare = compose(*steps)

  def evaluate(predict) -> Evaluation:
    found = predict(source, steps)
    losses = found.outputs['loss'][found.mask]

    def draw():
      images, labels = [], []
      for i in np.flatnonzero(found.mask)[:sheet]:
        try:
          record = prepare(source[int(i)], np.random.default_rng(int(i)))
        except CorruptRecord:
          continue
        images += triple(
          record['image'],
          record['keep'],
          found.outputs['prediction'][i],
          config.mean,
          config.std,
          normalized=config.norm_pix_loss,
        )
        labels += ['picture', 'masked', f'loss {found.outputs["loss"][i]:.2f}']
      shown = pictures.picture_sheet(images, labels, columns=9)
      return {'reconstructions': shown}

    return Evaluation({'loss': float(losses.mean())}, draw)

  return evaluate


def triple(
  image: UInt8[np.ndarray, 'h w c'],
  keep: Int[np.ndarray, ' k'],
  prediction: Float[np.ndarray, 'n p'],
  mean: Sequence[float],
  std: Sequence[float],
  *,
  normalized: bool,
) -> list[UInt8[np.ndarray, 'h w 3']]:
  """The picture; its visible patches; those with the others filled in.

  Args:
    image: as the network gets it.
    keep: its visible patches.
    prediction: of all patches, of normalised pixels.
    mean: of the channels, as the network gets them.
    std: likewise.
    normalized: predictions are of patches with mean 0 and variance 1, which
      get the true ones back: what is to be seen is their structure.
  """
  h, w, c = image.shape
  side = round((prediction.shape[1] / c) ** 0.5)
  x = to_patches((image / 255 - np.asarray(mean)) / np.asarray(std), side)
  filled = prediction.astype(np.float64)
  if normalized:
    spread = np.sqrt(x.var(1, ddof=1, keepdims=True) + 1e-6)
    filled = filled * spread + x.mean(1, keepdims=True)
  filled[keep] = x[keep]
  pixels = from_patches(filled, (h, w)) * np.asarray(std) + np.asarray(mean)
  filled = np.clip(np.round(255 * pixels), 0, 255).astype(np.uint8)
  seen = np.full_like(to_patches(image, side), GREY)
  seen[keep] = to_patches(image, side)[keep]
  shown = [image, from_patches(seen, (h, w)), filled]
  return [np.broadcast_to(picture, (h, w, 3)) for picture in shown]


def to_patches(image: np.ndarray, side: int) -> np.ndarray:
  """[h, w, c] -> [n, side side c]: row by row, each by row, column, channel."""
  h, w, c = image.shape
  x = image.reshape(h // side, side, w // side, side, c).swapaxes(1, 2)
  return x.reshape(-1, side * side * c)


def from_patches(x: np.ndarray, size: tuple[int, int]) -> np.ndarray:
  """`to_patches` undone, for an image of (h, w)."""
  h, w = size
  side = round((h * w / len(x)) ** 0.5)
  x = x.reshape(h // side, w // side, side, side, -1).swapaxes(1, 2)
  return x.reshape(h, w, -1)
