"""Pictures of results: sheets of pictures, confusions, learning curves."""

import io
import textwrap
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

RIGHT, WRONG, PLAIN = (34, 160, 70), (205, 45, 45), (120, 120, 120)


class Ranking(NamedTuple):
  """One query and the images it found, best first.

  Attributes:
    caption: the query.
    images: uint8 [h, w, 3] each, of any size.
    right: whether each image is relevant; () where that is not known.
    labels: a line under each image; () for the rank.
  """

  caption: str
  images: Sequence[np.ndarray]
  right: Sequence[bool] = ()
  labels: Sequence[str] = ()


def retrieval_sheet(
  rankings: Sequence[Ranking], *, height: int = 150, width: int = 1080
) -> np.ndarray:
  """Each query's text above its images, right ones framed green, wrong red.

  Args:
    rankings: one row each.
    height: of an image, in pixels; its width follows the usual 3 : 1 of
      pedestrians where the picture has that shape, else its own.
    width: of the sheet.

  Returns:
    uint8 [h, width, 3].
  """
  rows = [_row(ranking, height, width) for ranking in rankings]
  return np.concatenate(rows) if rows else np.full((1, width, 3), 255, np.uint8)


def _row(ranking: Ranking, height: int, width: int) -> np.ndarray:
  font, small = ImageFont.load_default(14), ImageFont.load_default(11)
  margin, frame, line = 14, 4, 19
  lines = textwrap.wrap(ranking.caption, width=(width - 2 * margin) // 7)
  top = margin + line * len(lines) + 6
  sheet = Image.new(
    'RGB', (width, top + height + 2 * frame + 26), (255, 255, 255)
  )
  draw = ImageDraw.Draw(sheet)
  for i, text in enumerate(lines):
    draw.text((margin, margin + line * i), text, (20, 20, 20), font)
  x = margin
  for i, image in enumerate(ranking.images):
    scale = height / image.shape[0]
    size = (max(1, round(image.shape[1] * scale)), height)
    if x + size[0] + 2 * frame > width - margin:
      break
    colour = PLAIN
    if len(ranking.right):
      colour = RIGHT if ranking.right[i] else WRONG
    draw.rectangle(
      (x, top, x + size[0] + 2 * frame - 1, top + height + 2 * frame - 1),
      colour,
    )
    sheet.paste(Image.fromarray(image).resize(size), (x + frame, top + frame))
    label = ranking.labels[i] if len(ranking.labels) else str(i + 1)
    draw.text((x + frame, top + height + 2 * frame + 3), label, colour, small)
    x += size[0] + 2 * frame + 10
  return np.asarray(sheet)


def picture_sheet(
  images: Sequence[np.ndarray],
  labels: Sequence[str],
  *,
  columns: int = 8,
  side: int = 112,
) -> np.ndarray:
  """Pictures in a grid, each with a line below it.

  Args:
    images: uint8 [h, w, 3] each, of any size; small ones are enlarged without
      smoothing.
    labels: a line for each, cut where it is too long.
    columns: pictures in a row.
    side: of the square that each is fitted into, in pixels.

  Returns:
    uint8 [h, w, 3].
  """
  font, line, gap = ImageFont.load_default(11), 16, 6
  rows = max(1, -(-len(images) // columns))
  size = columns * (side + gap) + gap, rows * (side + line + gap) + gap
  sheet = Image.new('RGB', size, (255, 255, 255))
  draw = ImageDraw.Draw(sheet)
  for i, (image, label) in enumerate(zip(images, labels, strict=True)):
    x = gap + i % columns * (side + gap)
    y = gap + i // columns * (side + line + gap)
    scale = side / max(image.shape[:2])
    width, height = (max(1, round(n * scale)) for n in image.shape[1::-1])
    smooth = Image.Resampling.BICUBIC if scale < 1 else Image.Resampling.NEAREST
    shown = Image.fromarray(image).resize((width, height), smooth)
    sheet.paste(shown, (x + (side - width) // 2, y + (side - height) // 2))
    while label and draw.textlength(label, font) > side:
      label = label[:-1]
    draw.text((x, y + side), label, (40, 40, 40), font)
  return np.asarray(sheet)


def confusion_matrix(
  counts: np.ndarray, names: Sequence[str], *, named: int = 40
) -> np.ndarray:
  """Labels (rows) against predictions (columns), each row by its own total.

  Args:
    counts: [k, k].
    names: of the classes; written where there are no more than `named`, as
      are the counts where there are no more than half as many.
    named: see `names`.

  Returns:
    uint8 [h, w, 3].
  """
  import matplotlib.figure  # a second to import: only where it is used

  count = len(names)
  side = min(12.0, 3.0 + 0.4 * count)  # inches
  figure = matplotlib.figure.Figure(figsize=(side, side), layout='tight')
  axes = figure.add_subplot()
  shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
  axes.imshow(shares, cmap='Blues', vmin=0, vmax=1)
  axes.set_xlabel('prediction')
  axes.set_ylabel('label')
  if count <= named:
    axes.set_xticks(range(count), names, rotation=90, fontsize=8)
    axes.set_yticks(range(count), names, fontsize=8)
  if 2 * count <= named:
    for i, j in zip(*np.nonzero(counts), strict=True):
      colour = 'white' if shares[i, j] > 0.5 else 'black'
      axes.text(
        j, i, str(counts[i, j]), ha='center', va='center',
        color=colour, fontsize=7,
      )  # fmt: skip
  return drawn(figure)


def learning_curves(
  history: Sequence[Mapping[str, float]], names: Sequence[str] | None = None
) -> np.ndarray:
  """Every metric over the steps, a small plot for each.

  Args:
    history: lines of metrics.jsonl: `step` and any metrics.
    names: which; default all but rates and times.

  Returns:
    uint8 [h, w, 3].
  """
  import matplotlib.figure  # a second to import: only where it is used

  if names is None:
    skipped = {'step', 'time', 'data_wait'}
    names = dict.fromkeys(
      name
      for line in history
      for name in line
      if name not in skipped
      and not name.endswith('_per_second')
      and name.count('/') < 2  # those of single layers are too many
    )
  names = list(names)
  columns = min(4, max(1, len(names)))
  rows = -(-len(names) // columns) or 1
  # A Figure of its own: pyplot's global state would choose a window system.
  width, height = 3.2 * columns, 2.3 * rows  # inches
  figure = matplotlib.figure.Figure(figsize=(width, height))
  # Margins by hand: a layout engine draws everything several times.
  figure.subplots_adjust(
    left=0.45 / width,
    right=1 - 0.15 / width,
    bottom=0.3 / height,
    top=1 - 0.3 / height,
    wspace=0.25,
    hspace=0.35,
  )
  for i, name in enumerate(names):
    axes = figure.add_subplot(rows, columns, i + 1)
    points = [(line['step'], line[name]) for line in history if name in line]
    marker = 'o' if '/' in name else None
    axes.plot(*zip(*points, strict=True), marker=marker, markersize=3)
    axes.set_title(name, fontsize=9)
    axes.tick_params(labelsize=7)
    axes.grid(alpha=0.3)
  return drawn(figure)


def drawn(figure) -> np.ndarray:
  """A figure of matplotlib as uint8 [h, w, 3]."""
  buffer = io.BytesIO()
  figure.savefig(buffer, format='png', dpi=100)
  return np.asarray(Image.open(buffer).convert('RGB'))
