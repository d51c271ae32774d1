"""CARD's published names (github.com/wxie9/CARD)."""

from jaxzoo.weights import rows as to
from jaxzoo.weights.rows import Row

# Layers that the published module makes and does not use, and constants.
UNUSED = (
  r'model\.Attentions_over_token\.\d+\.dp_[kv]\..*',
  r'model\.Attentions_over_\w+\.\d+\.(mlp\..*|ema_matrix)',
)


def unused(use_statistic: bool) -> str:
  """A regex of the tensors that no layer of ours needs.

  The published module has `cls` and `W_statistic`, and uses one of them.
  """
  other = r'model\.cls' if use_statistic else r'model\.W_statistic\..*'
  return '|'.join((*UNUSED, other))


def rows(depth: int, use_statistic: bool = False) -> list[Row]:
  """The tensors of the published state dict, without the unused ones."""
  result = [
    *to.tensor('model.W_pos_embed', 'positions'),
    *to.linear('model.W_input_projection', 'embed'),
    *to.linear('model.W_out', 'head'),
    *(
      to.linear('model.W_statistic', 'statistic')
      if use_statistic
      else to.tensor('model.cls', 'cls')
    ),
  ]
  for i in range(depth):
    for axis in ('channel', 'token'):
      theirs, ours = f'model.Attentions_over_{axis}.{i}', f'block_{i}/{axis}s'
      result += to.linear(f'{theirs}.qkv', f'{ours}/qkv')
      for theirs_norm, norm in (
        ('norm_post1', 'norm1'),
        ('norm_post2', 'norm2'),
        ('norm_attn', 'norm_out'),
      ):
        result += to.batch_norm(f'{theirs}.{theirs_norm}.1', f'{ours}/{norm}')
      for j in (1, 2):
        result += to.linear(f'{theirs}.ff_{j}.0', f'{ours}/ff{j}_in')
        result += to.linear(f'{theirs}.ff_{j}.3', f'{ours}/ff{j}_out')
      if axis == 'channel':
        result += to.linear(f'{theirs}.dp_k', f'{ours}/summary_k')
        result += to.linear(f'{theirs}.dp_v', f'{ours}/summary_v')
    result += to.linear(f'model.Attentions_mlp.{i}', f'block_{i}/mlp')
    result += to.batch_norm(f'model.Attentions_norm.{i}.1', f'block_{i}/norm')
  return result
