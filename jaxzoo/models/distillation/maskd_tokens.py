"""The first stage of MasKD: receptive tokens learn what a teacher looks at.

arXiv 2205.14589, section 3.2. The frozen teacher has to do its task with
features of which only masked pixels are left, while the masks are kept apart.
"""

import jax
import jax.numpy as jnp
import optax

from jaxzoo.models.distillation import distillation, maskd
from jaxzoo.models.layers.image import normalize
from jaxzoo.system import System, from_loss
from jaxzoo.weights import rows as to

SHARDING = ()  # the teacher's own, see `sharding`
sharding = distillation.sharding
convert_teacher = distillation.convert_teacher


def build(config, tx: optax.GradientTransformation) -> System:
  """Tokens of every map of the teacher; `params` are {map: MaskModule's}.

  loss = task(decode(F')) + sum over maps of dice(M), F' = F * sum_t w_t M_t.

  Args:
    config: `task` and `teacher` as for `distillation.build`; `tokens`:
      `num_tokens`, `weighted`, and `on`: 'levels', all maps (of a classifier
      the last, from which its vector must be the mean), or 'logits' of dense
      outputs.
    tx: the optimizer of the tokens.

  Returns:
    The system; `predict` gives what the teacher predicts with masked features.

  Raises:
    UserError: an unknown task, or maps that it cannot be continued from.
  """
  task = distillation.task_of(config)
  teacher, fields = distillation.make_teacher(config), config.tokens
  prepare = lambda image: normalize(
    image,
    config.teacher.mean,
    config.teacher.std,
    jnp.dtype(config.teacher.dtype),
  )

  def maps_of(outputs):
    if fields.on == 'logits':
      return {'logits': outputs.logits}
    return task.levels(outputs)

  def module(feature):
    return maskd.MaskModule(
      feature.shape[-1], fields.num_tokens, fields.weighted
    )

  def look(variables, image):
    outputs = teacher.apply(
      jax.lax.stop_gradient(variables), prepare(image), method=task.look
    )
    return jax.lax.stop_gradient(outputs)

  def masked(params, variables, image):
    """(outputs with masked features, masks by map)."""
    outputs = look(variables, image)
    found, maps = {}, {}
    for name, feature in maps_of(outputs).items():
      found[name] = module(feature).apply({'params': params[name]}, feature)
      maps[name] = maskd.masked_feature(feature, found[name])
    if fields.on == 'logits':
      return outputs._replace(logits=maps['logits']), found
    return task.proceed(teacher, variables, outputs, maps), found

  def init(rng, batch):
    keys = jax.random.split(rng)
    blank = jnp.zeros((1, *batch['image'].shape[1:]), jnp.uint8)
    variables = teacher.init(keys[0], prepare(blank))
    outputs = jax.eval_shape(look, variables, blank)
    params = {}
    for i, (name, feature) in enumerate(maps_of(outputs).items()):
      zeros = jnp.zeros(feature.shape)
      key = jax.random.fold_in(keys[1], i)
      params[name] = module(feature).init(key, zeros)['params']
    return params, {'teacher': dict(variables)}

  def loss(params, extra, batch, rng):
    image, targets = task.targets(batch, rng, config)
    outputs, found = masked(params, extra['teacher'], image)
    base, metrics = task.base(outputs, targets, config)
    dice = sum(maskd.dice(each.masks) for each in found.values())
    area = sum(each.masks.mean() for each in found.values()) / len(found)
    metrics = {**metrics, 'base': base, 'dice': dice, 'mask_area': area}
    return base + dice, (extra, metrics)

  def predict(params, extra, batch):
    outputs, _ = masked(params, extra['teacher'], batch['image'])
    return task.answer(outputs, batch['image'])

  return from_loss(init, loss, predict, tx, microbatches=config.microbatches)


def convert(state_dict, config) -> dict:
  """Published tokens of `teacher`'s maps, in the released names, as parameters.

  Those of map i lie below `mask_modules.i.`, of logits below `mask_module.`.
  """
  if config.tokens.on == 'logits':
    places = {'logits': 'mask_module.'}
  else:
    teacher = distillation.make_teacher(config)
    names = _map_names(teacher, config)
    places = {name: f'mask_modules.{i}.' for i, name in enumerate(names)}
  found = {}
  for name, prefix in places.items():
    own = {k: v for k, v in state_dict.items() if k.startswith(prefix)}
    module = maskd.MaskModule(
      0, config.tokens.num_tokens, config.tokens.weighted
    )
    found[name] = to.load(own, maskd.rows(module, prefix)).get('params', {})
  return found


def _map_names(teacher, config) -> list[str]:
  """Names of the maps that tokens look at."""
  image = jnp.zeros((1, *config.image_size, config.in_chans))
  task = distillation.task_of(config)

  def maps():
    variables = teacher.init(jax.random.key(0), image)
    return task.levels(teacher.apply(variables, image, method=task.look))

  return [*jax.eval_shape(maps)]


def from_stages(states, config):
  """({}, {'teacher': variables}) of the teacher's run."""
  return {}, {'teacher': distillation.take_teacher(*states['teacher'], config)}
