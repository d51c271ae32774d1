"""Searches images by text, with a run of jaxzoo or a published checkpoint.

    python -m jaxzoo.retrieve --workdir=runs/cfam --images=photos \\
        "a man with a red backpack"

prints the best images of a folder and draws them into retrieval.png. From
Python:

    from jaxzoo.retrieve import Retriever

    retriever = Retriever.from_run('runs/cfam')
    gallery = retriever.embed_images('photos')
    for hit in retriever.search('a man with a red backpack', gallery, k=10):
      print(hit.score, hit.path)
"""

import argparse
import hashlib
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import jax
import ml_collections
import numpy as np
import optax
from absl import logging
from jaxtyping import Float
from PIL import Image

from jaxzoo import catalog, configuration, runs
from jaxzoo.data import transforms
from jaxzoo.errors import UserError
from jaxzoo.eval.evaluator import make_predict
from jaxzoo.eval.gallery import (
  Files,
  Gallery,
  Hit,
  draw,
  list_images,
  readable,
  stamp,
)
from jaxzoo.eval.retrieval import rank
from jaxzoo.initial import convert_weights
from jaxzoo.runs import build_system
from jaxzoo.system import State
from jaxzoo.train import mesh as meshes
from jaxzoo.weights.clip import input_sizes_of, towers_of
from jaxzoo.weights.merge import merge
from jaxzoo.weights.readers import read_state_dict


class Retriever(NamedTuple):
  """A trained model and what it expects of images and captions.

  Made by `from_run` or `from_weights`; one process, any number of devices.

  Attributes:
    name: the model in words.
    digest: of its parameters and of the preparation of images.
    predict: (source, transforms) -> Predictions, in batches.
    predict_one: the same, one record at a time.
    image_transforms: from a picture on disk to the model's input.
    text_transforms: from a caption to token ids.
    tokenizer: as in `text_transforms`.
    text_length: ids of a caption that the model reads.
  """

  name: str
  digest: str
  predict: Callable
  predict_one: Callable
  image_transforms: tuple[transforms.Transform, ...]
  text_transforms: tuple[transforms.Transform, ...]
  tokenizer: Callable
  text_length: int

  @classmethod
  def from_run(
    cls,
    workdir,
    *,
    step: int | str = 'newest',
    batch_size: int = 32,
    mesh: jax.sharding.Mesh | None = None,
  ) -> 'Retriever':
    """A model that `python -m jaxzoo.main` has trained, or is training.

    Images and captions are prepared as the run's evaluators prepare them.

    Args:
      workdir: of the run; nothing in it is changed.
      step: of a checkpoint; or 'newest', passing over damaged ones; or 'best'
        by the metric that the run's config names in `checkpoint.best`.
      batch_size: images at a time, rounded up to a multiple of the devices.
      mesh: default: all devices side by side, each with the whole model.

    Raises:
      UserError: there is no such run or step, or the run is not of a system
        that compares images with captions.
    """
    mesh = mesh or meshes.make_mesh({'data': -1})
    config, state = runs.read_run(workdir, step, mesh)
    name = f'{config.system} of {workdir}, step {int(state.step)}'
    return _make(config, state, name, mesh, batch_size)

  @classmethod
  def from_weights(
    cls,
    path,
    *,
    config: ml_collections.ConfigDict | str | None = None,
    dtype: str = 'float32',
    batch_size: int = 32,
    mesh: jax.sharding.Mesh | None = None,
  ) -> 'Retriever':
    """A published checkpoint: CLIP, or a descendant such as IRRA.

    Args:
      path: as `weights.readers.read_state_dict` takes it: a file, a folder, a
        name on the Hugging Face hub.
      config: of a system, or its name ('irra:cuhk_pedes'), for a checkpoint
        that was fine-tuned to other images and captions than CLIP's own. By
        default the sizes are read off the checkpoint, and pictures prepared as
        CLIP does: the shorter side resized, the middle cut out.
      dtype: of the computation.
      batch_size: see `from_run`.
      mesh: see `from_run`.

    Raises:
      UserError: no such file, or no CLIP in it, or it does not fit `config`.
    """
    state_dict = read_state_dict(path)
    prepare = None
    if config is None:
      config = _clip_config(state_dict)
      side, _ = config.image_size
      prepare = (transforms.resize_shorter(side), transforms.center_crop(side))
    elif isinstance(config, str):
      config = catalog.get_config(config)
    config = config.copy_and_resolve_references()
    config.dtype = dtype
    config.ema = 0.0  # a checkpoint has one set of parameters
    mesh = mesh or meshes.make_mesh({'data': -1})
    state = _load_weights(state_dict, config, mesh)
    return _make(config, state, f'{path}', mesh, batch_size, prepare)

  def embed_images(
    self,
    images: str | os.PathLike | Iterable[str],
    *,
    known: Gallery | None = None,
  ) -> Gallery:
    """The vectors of images.

    Files that cannot be read are left out, with a warning for each, and are
    listed in the gallery's `unreadable`.

    Args:
      images: a folder, searched with the folders in it; or paths of files.
      known: made by this model: images in it whose files have not changed are
        taken from it.

    Raises:
      UserError: no images, none that can be read, or `known` is of another
        model.
    """
    if isinstance(images, (str, os.PathLike)):
      paths = list_images(images)
    else:
      paths = tuple(dict.fromkeys(map(os.fspath, images)))
    stamps = {path: stamp(path) for path in paths}
    rows = {}
    if known is not None:
      self._check(known)
      for i, path in enumerate(known.paths):
        if stamps.get(path) == tuple(known.stamps[i]):
          rows[path] = known.embeddings[i]
    rows |= self._embed([path for path in paths if path not in rows])
    if not rows:
      raise UserError(
        f'none of the {len(paths)} images can be read' if paths else 'no images'
      )
    there = tuple(path for path in paths if path in rows)
    return Gallery(
      there,
      np.stack([rows[path] for path in there]),
      np.array([stamps[path] for path in there], np.int64),
      tuple(path for path in paths if path not in rows),
      self.name,
      self.digest,
    )

  def embed_captions(self, captions: Sequence[str]) -> Float[np.ndarray, 'n d']:
    """The vectors of captions, of length 1.

    A caption that is longer than the model can read is cut, with a warning.

    Raises:
      UserError: an empty caption, or none.
    """
    for caption in captions:
      if not caption.strip():
        raise UserError('an empty query finds nothing: say what to look for')
      length = len(self.tokenizer.encode(caption)) + 2  # start and end
      if length > self.text_length:
        kept = self.tokenizer.decode(
          self.tokenizer(caption, self.text_length).tolist()
        )
        logging.warning(
          'the query has %d tokens and the model reads %d; what it sees ends '
          'in: ... %s',
          length,
          self.text_length,
          kept.strip()[-40:],
        )
    if not len(captions):
      raise UserError('no captions')
    predict = self.predict_one if len(captions) == 1 else self.predict
    records = [{'caption': caption} for caption in captions]
    return predict(records, self.text_transforms).outputs['text']

  def search(self, caption: str, gallery: Gallery, k: int = 10) -> list[Hit]:
    """The `k` images of the gallery that fit the caption best, best first.

    Raises:
      UserError: an empty caption, k below 1, or a gallery of another model.
    """
    self._check(gallery)
    if k < 1:
      raise UserError(f'k={k}: ask for at least one image')
    scores, found = rank(self.embed_captions([caption]), gallery.embeddings, k)
    return [
      Hit(i, float(score), gallery.paths[row])
      for i, (score, row) in enumerate(
        zip(scores[0], found[0], strict=True), start=1
      )
    ]

  def _check(self, gallery: Gallery) -> None:
    if gallery.digest != self.digest:
      raise UserError(
        f'the gallery was embedded by another model ({gallery.model}) than '
        f'this one ({self.name}): embed the images again'
      )

  def _embed(self, paths: Sequence[str]) -> dict[str, np.ndarray]:
    """path -> vector of those that can be read."""
    # One that can be read comes first: it shows what a batch looks like.
    first = next((i for i, path in enumerate(paths) if readable(path)), None)
    if first is None:
      return {}
    paths = [*paths[first:], *paths[:first]]
    found = self.predict(Files(paths), self.image_transforms)
    vectors = zip(paths, found.mask, found.outputs['image'], strict=True)
    return {path: vector for path, good, vector in vectors if good}


def _clip_config(state_dict) -> ml_collections.ConfigDict:
  """What `models.retrieval.clip` needs to know, read off a checkpoint."""
  side, text_length = input_sizes_of(state_dict)
  config = configuration.defaults()
  config.system = 'clip'
  config.towers = towers_of(state_dict)
  config.image_size = (side, side)
  config.text_length = text_length
  config.data.kind = 'person_retrieval'
  config.data.mask_words = 0.0
  return config


def _data(config):
  """The module that prepares images and captions of the config's system."""
  data = catalog.part(catalog.DATA, config.data.kind, 'data.kind')
  for name in ('image_transforms', 'text_transforms'):
    if not hasattr(data, name):
      raise UserError(f'{config.system} does not compare images with captions')
  return data


def _load_weights(state_dict, config, mesh) -> State:
  """The part of a state that a published checkpoint has."""
  expected = meshes.placed(*runs.expected_state(config, mesh))
  params, extra = convert_weights(state_dict, config)
  missing = sorted(expected.extra.keys() - extra.keys())
  if missing:
    raise UserError(
      f'the checkpoint gives {config.system} no {", ".join(missing)}'
    )
  # Modules that only training uses may be missing, each as a whole.
  known = {name: expected.params.get(name, {}) for name in params}
  return State(
    step=(),
    rng=(),
    params=merge(known, params)[0],
    opt=(),
    extra=merge(expected.extra, extra)[0],
  )


def _make(config, state, name, mesh, batch_size, prepare=None) -> Retriever:
  if batch_size < 1:
    raise UserError(f'batch_size={batch_size}: must be at least 1')
  data = _data(config)
  system = build_system(config, optax.identity())
  digest = hashlib.blake2b(digest_size=16)
  inputs = (*config.image_size, config.text_length, bool(prepare))
  digest.update(repr(inputs).encode())
  arrays = (state.params, state.extra)
  for path, leaf in jax.tree_util.tree_flatten_with_path(arrays)[0]:
    value = np.ascontiguousarray(leaf)
    digest.update(f'{path}{value.dtype}{value.shape}'.encode())
    digest.update(value.reshape(-1).view(np.uint8))
  return Retriever(
    name,
    digest.hexdigest(),
    make_predict(system, mesh, batch_size)(state),
    make_predict(system, mesh, 1)(state),
    prepare or data.image_transforms(config),
    data.text_transforms(config),
    data.make_tokenizer(config),
    config.text_length,
  )


def print_hits(hits: Sequence[Hit]) -> None:
  """The ranking as a table of three columns."""
  print('rank   score  path')
  for hit in hits:
    print(f'{hit.rank:4}  {hit.score:6.3f}  {_printable(hit.path)}')


def _printable(path: str) -> str:
  """The path, with what is no text in it escaped."""
  return os.fsencode(path).decode(errors='backslashreplace')


def parse_arguments(argv) -> argparse.Namespace:
  """The command line."""
  parser = argparse.ArgumentParser(
    prog='python -m jaxzoo.retrieve',
    description='Searches images by text.',
    allow_abbrev=False,
  )
  parser.add_argument('query', nargs='+', help='what to look for')
  model = parser.add_mutually_exclusive_group(required=True)
  model.add_argument('--workdir', help='of a run of jaxzoo.main')
  model.add_argument(
    '--weights', help='a CLIP checkpoint: a file, or a name on the hub'
  )
  parser.add_argument(
    '--images', metavar='DIR', help='folder that is searched, with its folders'
  )
  parser.add_argument(
    '--index',
    metavar='FILE.npz',
    help='keeps the vectors of the images: only new and changed ones are '
    'embedded the next time; without --images it is searched as it is',
  )
  parser.add_argument('--k', type=int, default=10, help='images to find (10)')
  parser.add_argument(
    '--sheet',
    metavar='FILE.png',
    default='retrieval.png',
    help="picture of what was found (retrieval.png); '' for none",
  )
  parser.add_argument(
    '--step',
    default='newest',
    help="checkpoint of the run: a number, 'newest' (default) or 'best'",
  )
  parser.add_argument(
    '--batch_size', type=int, default=32, help='images at a time (32)'
  )
  return parser.parse_args(argv)


def check_outputs(arguments) -> None:
  """Finds out before the work whether what comes of it can be written."""
  for name in ('sheet', 'index'):
    path = getattr(arguments, name)
    folder = os.path.dirname(path or '') or '.'
    if path and '://' not in path and not os.path.isdir(folder):
      raise UserError(f'--{name}={path}: there is no folder {folder}')
  suffix = os.path.splitext(arguments.sheet)[1].lower()
  if arguments.sheet and suffix not in Image.registered_extensions():
    raise UserError(
      f'--sheet={arguments.sheet}: no kind of picture ends in {suffix!r}; take .png'
    )


def search(arguments) -> None:
  """What the command line asks for."""
  query = ' '.join(arguments.query)
  if not query.strip():
    raise UserError('an empty query finds nothing: say what to look for')
  if not (arguments.images or arguments.index):
    raise UserError('nothing to search: give --images=DIR or --index=FILE')
  if arguments.k < 1:
    raise UserError(f'--k={arguments.k}: ask for at least one image')
  check_outputs(arguments)
  # A wrong folder is found before the model is loaded.
  paths = list_images(arguments.images) if arguments.images else None
  known = None
  if arguments.index and (paths is None or os.path.exists(arguments.index)):
    known = Gallery.load(arguments.index)
  if arguments.workdir:
    step = arguments.step
    retriever = Retriever.from_run(
      arguments.workdir,
      step=int(step) if step.isdecimal() else step,
      batch_size=arguments.batch_size,
    )
  else:
    retriever = Retriever.from_weights(
      arguments.weights, batch_size=arguments.batch_size
    )
  gallery = known
  if paths is not None:
    print(f'{retriever.name}; {len(paths)} images', file=sys.stderr)
    gallery = retriever.embed_images(paths, known=known)
    if arguments.index:
      gallery.save(arguments.index)
  hits = retriever.search(query, gallery, arguments.k)
  print_hits(hits)
  if gallery.unreadable:
    unreadable = map(_printable, gallery.unreadable)
    print(f'{len(gallery.unreadable)} unreadable:', *unreadable)
  if arguments.sheet:
    Image.fromarray(draw(query, hits)).save(arguments.sheet)
    print(f'drawn in {arguments.sheet}')


def main(argv=None) -> int:
  """Runs the command line; 2 for a mistake that the message explains."""
  logging.set_verbosity(logging.WARNING)
  arguments = parse_arguments(sys.argv[1:] if argv is None else argv)
  try:
    search(arguments)
  except UserError as error:
    print(f'error: {error}', file=sys.stderr)
    return 2
  return 0


if __name__ == '__main__':
  sys.exit(main())
