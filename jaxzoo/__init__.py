"""jaxzoo: published systems in JAX, one sharded loop for all of them."""

from importlib import import_module

__version__ = '0.1.0'

# Name -> module that has it. Resolved on first use: importing jaxzoo imports
# no network and starts no device.
_LAZY = {
  'UserError': 'jaxzoo.errors',
  'create_model': 'jaxzoo.models.create',
  'create_system': 'jaxzoo.assembly',
  'get_config': 'jaxzoo.catalog',
  'list_models': 'jaxzoo.models.cards',
  'list_systems': 'jaxzoo.catalog',
  'load_weights': 'jaxzoo.models.create',
  'model_card': 'jaxzoo.models.cards',
}
__all__ = ['__version__', *_LAZY]


def __getattr__(name):
  if name in _LAZY:
    return getattr(import_module(_LAZY[name]), name)
  raise AttributeError(f'module {__name__!r} has no attribute {name!r}')


def __dir__():
  return sorted(__all__)
