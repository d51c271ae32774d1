"""Towers and batches for the retrieval systems, as small as they get."""

import jax
import ml_collections
import numpy as np

START, END, MASK = 38, 39, 37
HEIGHT, WIDTH, LENGTH, CLASSES = 16, 8, 7, 5


def config(**fields):
  """What the retrieval systems read, without the losses."""
  return ml_collections.ConfigDict(
    dict(
      dict(
        towers=dict(
          image='vit',
          image_width=8,
          image_depth=1,
          image_heads=2,
          patch_size=4,
          text_width=8,
          text_depth=1,
          text_heads=2,
          vocab_size=40,
          output_dim=8,
        ),
        image_size=(HEIGHT, WIDTH),
        text_length=LENGTH,
        num_classes=CLASSES,
        dtype='float32',
        scan=False,
        remat='none',
        batch_size=6,
        microbatches=1,
      ),
      **fields,
    )
  )


def batch(pid=(0, 0, 1, 1, 2, 3), seed=0):
  """Random images and texts of the given identities, the mlm keys included.

  Texts have 1 to LENGTH - 2 words between start and end; the first is masked.
  """
  rng = np.random.default_rng(seed)
  size = len(pid)
  text = np.zeros((size, LENGTH), np.int32)
  for row in text:
    words = rng.integers(1, LENGTH - 1)
    row[0], row[words + 1] = START, END
    row[1 : words + 1] = rng.integers(1, MASK, words)
  masked, labels = text.copy(), np.zeros_like(text)
  masked[:, 1], labels[:, 1] = MASK, text[:, 1]
  return {
    'image': rng.integers(0, 256, (size, HEIGHT, WIDTH, 3)).astype(np.uint8),
    'text': text,
    'pid': np.asarray(pid, np.int32),
    'mlm_text': masked,
    'mlm_labels': labels,
  }


def filled(shapes, seed=0):
  """Arrays of the given shapes: norms near 1, everything else near 0.

  Instead of a system's own initialisation, which takes long to compile.
  """
  rng = np.random.default_rng(seed)

  def fill(path, x):
    noise = rng.normal(0, 0.3, x.shape).astype(x.dtype)
    return 1 + noise if path[-1].key == 'scale' else noise

  return jax.tree_util.tree_map_with_path(fill, shapes)


def trained(system, tx, steps):
  """The state, the compiled step and the metrics of some steps on `batch()`."""
  state = jax.eval_shape(system.init, jax.random.key(0), batch())
  params = filled(state.params)
  state = state._replace(
    step=np.int32(0),
    rng=jax.random.key(1),
    params=params,
    opt=tx.init(params),
  )
  step, history = jax.jit(system.step), []
  for _ in range(steps):
    state, metrics = step(state, batch())
    history.append(jax.device_get(metrics))
  return state, step, history
