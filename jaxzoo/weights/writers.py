"""State dicts to files."""

import os
from collections.abc import Mapping

import numpy as np
import safetensors.numpy
from etils import epath


def write_safetensors(
  path: str | os.PathLike,
  tensors: Mapping[str, np.ndarray],
  metadata: Mapping[str, str] | None = None,
) -> None:
  """Writes arrays by name; the file appears whole or not at all.

  Args:
    path: local or gs://; its folder must exist. An old file is replaced.
    tensors: name -> array, of numpy or JAX, any layout, bfloat16 too.
    metadata: strings to keep beside them.
  """
  path = epath.Path(path)
  arrays = {k: np.asarray(x, order='C') for k, x in tensors.items()}
  data = safetensors.numpy.save(arrays, dict(metadata or {}) or None)
  part = path.with_name(f'{path.name}.{os.getpid()}.part')
  try:
    part.write_bytes(data)
    part.replace(path)
  finally:
    part.unlink(missing_ok=True)
