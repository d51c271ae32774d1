"""What the host process needs to run fast on a CPU."""

import ctypes

import jax

# Parameters of glibc's mallopt.
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4


def keep_freed_memory() -> bool:
  """Makes malloc keep large blocks instead of giving them back to the system.

  On the CPU backend every step allocates and frees hundreds of megabytes. By
  default each block comes from the system as pages that must be cleared again
  on every step. Call it before the backend starts its threads.

  It reaches blocks of up to 64 MB; larger ones that XLA's threads ask for come
  and go whatever is set, which `jaxzoo.huge_pages` makes cheap.

  The number of arenas stays: with one for all threads, what LLVM leaves behind
  in it after compilation makes the small blocks of every later operation slow.

  Returns:
    Whether it took effect: not on accelerators, nor where the C library is
    not glibc.
  """
  if jax.config.jax_platforms not in (None, '', 'cpu'):
    return False
  try:
    mallopt = ctypes.CDLL(None).mallopt
  except (AttributeError, OSError, TypeError):
    return False
  return all(
    mallopt(name, value)
    for name, value in (
      (_MMAP_MAX, 0),
      (_TRIM_THRESHOLD, 2**31 - 1),
    )
  )
