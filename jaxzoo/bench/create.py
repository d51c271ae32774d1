"""Time and memory of `import jaxzoo` and of `create_model`.

    python -m jaxzoo.bench.create                the largest model
    python -m jaxzoo.bench.create resnet50 clip_vit_l14

Each is measured in a process of its own, which begins with nothing loaded.
"""

import json
import subprocess
import sys

from jaxzoo.bench import command
from jaxzoo.errors import UserError
from jaxzoo.models.cards import MODELS, model_card

# Prints a JSON object; the name of the model is its argument.
_PROGRAM = """
import json, resource, sys, time

def lap(since=[time.perf_counter()]):
  seconds, since[0] = time.perf_counter() - since[0], time.perf_counter()
  return seconds

def peak():
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20

told = {'model': sys.argv[1], 'python_gib': peak()}
lap()
import jaxzoo
jaxzoo.list_models()
told['import_seconds'] = lap()
told['import_modules'] = len(sys.modules)
create_model = jaxzoo.create_model
import jax
jax.devices()
told['jax_seconds'] = lap()
told['jax_gib'] = peak()
module, variables = create_model(sys.argv[1])
variables = jax.block_until_ready(variables)
told['create_seconds'] = lap()
told['create_gib'] = peak()
leaves = jax.tree.leaves(variables)
told['variables_gib'] = sum(x.nbytes for x in leaves) / 2**30
print(json.dumps(told))
"""


def largest() -> str:
  """The model with most parameters."""
  return max(MODELS, key=lambda name: MODELS[name].parameters)


def measure(name: str) -> dict:
  """The numbers of one model.

  Returns:
    `import_seconds` of `import jaxzoo` with a listing, and `import_modules`,
    how many modules are then loaded; `jax_seconds` until JAX has started;
    `create_seconds` of `create_model`, compilation included; at the most in
    memory, in GiB, `python_gib`, `jax_gib` and `create_gib` of the process, of
    which `variables_gib` are the variables.

  Raises:
    UserError: no such model, or the process failed.
  """
  model_card(name)
  done = subprocess.run(
    [sys.executable, '-c', _PROGRAM, name], capture_output=True, text=True
  )
  if done.returncode:
    reason = done.stderr.strip().splitlines()[-1:]
    raise UserError(f'create_model({name!r}) failed: {" ".join(reason)}')
  return json.loads(done.stdout.splitlines()[-1])


def row(found: dict) -> str:
  """A line for people."""
  return (
    '{model}: import jaxzoo {import_seconds:.2f} s ({import_modules} modules), '
    'JAX {jax_seconds:.1f} s and {jax_gib:.2f} GiB, create_model '
    '{create_seconds:.1f} s; {create_gib:.2f} GiB at the most, of which '
    '{variables_gib:.2f} are variables'
  ).format(**found)


def create(argv) -> None:
  """The command."""
  parser = command.bare_parser('create', 'Time and memory of create_model.')
  add = parser.add_argument
  add('models', nargs='*', metavar='NAME', help='default: the largest')
  add('--json', metavar='FILE', help='write the numbers')
  arguments = parser.parse_args(argv)
  results = []
  for name in arguments.models or [largest()]:
    results.append(measure(name))
    print(row(results[-1]), flush=True)
  if arguments.json:
    command.write_json(arguments.json, {'models': results})


if __name__ == '__main__':
  sys.exit(command.run(create))
