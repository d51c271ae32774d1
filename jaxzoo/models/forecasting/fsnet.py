"""FSNet: convolutions that adapt to their own gradients, with a memory.

Fast and slow learning for time series (arXiv 2202.11672, ICLR 2023): a moving
average of a layer's gradient says how its weights, bias and output are to be
scaled; where the gradient turns against its own past, the layer writes the
scales that it is using into an associative memory, and reads similar ones.

Beside the parameters each layer has a state, which takes no gradient: the
collection `fsnet`. `recall` and the running query belong to the forward pass,
`remember_gradients` to the end of a step.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxzoo.models.forecasting.tcn import KERNEL, Convs, uniform

SLOW, FAST = 0.9, 0.3  # decay of the gradient's averages, and of the query
TURN = 0.75  # a cosine below its negative triggers; and the share that is own
SLOTS, READ = 32, 2
TEMPERATURE = 0.5
CONTROLLER = 64
COLLECTION = 'fsnet'


def recall(
  memory: Float[Array, 'n m s'],
  query: Float[Array, 'n m'],
  triggered: Bool[Array, ' n'],
) -> tuple[Float[Array, 'n m'], Float[Array, 'n m s']]:
  """Reads from the memories of n layers and writes into them.

  a = softmax(q W / 0.5); s is a in the two largest places and 0 elsewhere; what
  is read is W s. Written, in these two columns: W <- 0.75 W + 0.25 (W s) s^T,
  then W / max(1, |W|_F).

  Args:
    memory: W.
    query: q.
    triggered: layers that write; what the others read is not to be used.

  Returns:
    (what is read, W after it).
  """
  attention = jax.nn.softmax(
    jnp.einsum('nm,nms->ns', query, memory) / TEMPERATURE
  )
  _, slots = jax.lax.top_k(attention, READ)
  chosen = jax.nn.one_hot(slots, memory.shape[-1]).sum(1)
  strength = attention * chosen
  old = jnp.einsum('nms,ns->nm', memory, strength)
  keep = (1 - (1 - TURN) * chosen)[:, None]
  written = keep * memory + (1 - keep) * old[..., None] * strength[:, None]
  norm = jnp.sqrt(jnp.square(written).sum((1, 2), keepdims=True))
  written = written / jnp.maximum(1, norm)
  return old, jnp.where(triggered[:, None, None], written, memory)


def recall_if_any(memory, query, triggered):
  """`recall`, where a layer has been triggered; else (zeros, `memory`).

  A loop of at most one turn: both sides of a `cond` would copy the memory.
  """

  def once(carry):
    _, _, memory = carry
    return (jnp.bool_(False), *recall(memory, query, triggered))

  first = triggered.any(), jnp.zeros_like(query), memory
  return jax.lax.while_loop(lambda carry: carry[0], once, first)[1:]


class AdaptiveConvs(nn.Module):
  """FSNet's convolutions, n of one size.

  The slow average g of the gradient of the kernel is cut into i chunks of o/i
  output channels each. A controller makes of every chunk 64 numbers, and of
  these the scales w [i, 3] of the taps, b and f [i, o/i] of bias and output:

    y = f * (conv(x, kernel * w) + bias * b)

  `o` is a multiple of `i`. With q = [w, b, f], the query is its average
  q' <- 0.3 q' + 0.7 q, which the layer's first pass only creates, at 0. Where
  the layer has been triggered, the scales are 0.75 of these and 0.25 of what
  `recall` reads by q'. Kernels with one tap have scales of three as well, as the
  memory holds them; the outer ones are not used.

  State, by layer: `slow` and `fast`, averages of the normalised gradient, in the
  kernel's layout; `query` and whether it is `created`; `triggered`; `memory`.

  Attributes:
    layers: convolutions in the stack.
    features_in: i.
    features: o.
    controller: outputs of the controller.
    slots: columns of the memory.
    memory: whether there is one ('nomem' of the tables has none).
    taps: of the kernels that see anything, 3 or 1.
  """

  layers: int
  features_in: int
  features: int
  controller: int = CONTROLLER
  slots: int = SLOTS
  memory: bool = True
  taps: int = KERNEL

  @nn.compact
  def __call__(self, online: bool = False) -> Convs:
    """The stack as the state scales it; the state moves on.

    Args:
      online: whether a trigger counts.
    """
    n, i, o, k = self.layers, self.features_in, self.features, self.taps
    kernel = self.param('kernel', uniform(KERNEL * i), (n, i, k, o))
    bias = self.param('bias', nn.initializers.zeros, (n, o))
    slow = self._averages((n, i, k, o))
    own = self._scales(slow)
    if self.memory:
      own = self._through_memory(own, online)
    w, b, f = jnp.split(own, [KERNEL * i, KERNEL * i + o], 1)
    cut = (KERNEL - k) // 2
    w = w.reshape(n, i, KERNEL, 1)[:, :, cut : cut + k]
    return Convs(kernel, bias * b, w, f)

  def _averages(self, shape) -> Float[Array, 'n i k o']:
    """The slow one; the fast one lives beside it."""
    stored = lambda name: self.variable(COLLECTION, name, jnp.zeros, shape)
    stored('fast')
    return stored('slow').value

  def _scales(self, slow) -> Float[Array, 'n m']:
    """[w, b, f] of all layers, each flat."""
    n, i, o = self.layers, self.features_in, self.features
    hidden, shape = self.controller, (i, self.taps, o // i)
    kernel = self.param(
      'controller_kernel', uniform(KERNEL * o), (n, hidden, *shape)
    )
    bias = self.param('controller_bias', uniform(KERNEL * o), (n, hidden))
    chunks = jax.lax.stop_gradient(slow).reshape(n, i, -1, i, o // i)
    rep = jnp.einsum('nhikc,nikrc->nhr', kernel, chunks) + bias[..., None]
    size = KERNEL + 2 * (o // i)
    kernel = self.param('scale_kernel', uniform(hidden), (n, hidden, size))
    bias = self.param('scale_bias', uniform(hidden), (n, size))
    scales = jnp.einsum('nhr,nhs->nrs', nn.silu(rep), kernel) + bias[:, None]
    parts = jnp.split(scales, [KERNEL, KERNEL + o // i], 2)
    return jnp.concatenate([part.reshape(n, -1) for part in parts], 1)

  def _through_memory(self, own, online):
    """The scales [n, m] after the memory has been asked."""
    n, m = own.shape
    stored = lambda *args: self.variable(COLLECTION, *args)
    memory = stored('memory', self._first_memory, (n, m, self.slots))
    query = stored('query', jnp.zeros, (n, m))
    created = stored('created', jnp.zeros, (), bool)
    triggered = stored('triggered', jnp.zeros, (n,), bool)
    if self.is_initializing():
      return own
    now = FAST * query.value + (1 - FAST) * jax.lax.stop_gradient(own)
    query.value = jnp.where(created.value, now, 0)
    created.value = jnp.ones_like(created.value)
    if not online:
      return own
    fired = triggered.value
    old, memory.value = recall_if_any(memory.value, query.value, fired)
    triggered.value = jnp.zeros_like(fired)
    read = TURN * own + (1 - TURN) * jax.lax.stop_gradient(old)
    return jnp.where(fired[:, None], read, own)

  def _first_memory(self, shape):
    """Xavier's uniform, then scaled to a norm of at most 1."""
    _, m, slots = shape
    bound = (6 / (m + slots)) ** 0.5
    memory = jax.random.uniform(
      self.make_rng('params'), shape, minval=-bound, maxval=bound
    )
    norm = jnp.sqrt(jnp.square(memory).sum((1, 2), keepdims=True))
    return memory / jnp.maximum(1, norm)


def remember_gradients(state: Mapping, grads: Mapping, online: bool) -> dict:
  """The state of all layers after a step's gradients.

  With n the gradient of a kernel, of norm 1 over its input channels:
  fast <- 0.3 fast + 0.7 n, slow <- 0.9 slow + 0.1 n; online, a layer is
  triggered where cos(fast, slow) < -0.75.

  Args:
    state: the collection `fsnet`, nested as the modules are.
    grads: of the parameters, nested likewise.
    online: in training nothing is triggered.
  """
  if 'slow' not in state:
    return {
      name: remember_gradients(inner, grads[name], online)
      for name, inner in state.items()
    }
  unit = _normalised(grads['kernel'])
  fast = FAST * state['fast'] + (1 - FAST) * unit
  slow = SLOW * state['slow'] + (1 - SLOW) * unit
  new = {**state, 'fast': fast, 'slow': slow}
  if online and 'triggered' in state:
    new['triggered'] = state['triggered'] | (_cosine(fast, slow) < -TURN)
  return new


def _normalised(kernel: Float[Array, 'n i k o']) -> Any:
  norm = jnp.sqrt(jnp.square(kernel).sum(1, keepdims=True))
  return kernel / jnp.maximum(norm, 1e-12)


def _cosine(a, b) -> Float[Array, ' n']:
  dot = lambda x, y: (x * y).sum((1, 2, 3))
  norm = lambda x: jnp.maximum(jnp.sqrt(dot(x, x)), 1e-6)
  return dot(a, b) / (norm(a) * norm(b))
