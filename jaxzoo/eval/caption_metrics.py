"""How much a caption is like those that people wrote: CIDEr-D and BLEU.

Captions are lower-cased and cut into words without punctuation; the published
numbers use Stanford's tokenizer, a Java program, which differs in rare cases.
METEOR and SPICE, Java programs too, are not here.
"""

import collections
import importlib
import math
import re
from collections.abc import Sequence

from jaxzoo.errors import UserError

ORDERS = (1, 2, 3, 4)
_WORD = re.compile(r"[^\W_]+(?:['-][^\W_]+)*")


def words_of(caption: str) -> list[str]:
  """The words of a caption, in lower case.

  >>> words_of("A dog's bowl, empty.")
  ['a', "dog's", 'bowl', 'empty']
  """
  return _WORD.findall(caption.lower())


def cider_d(
  captions: Sequence[str],
  references: Sequence[Sequence[str]],
  *,
  sigma: float = 6.0,
) -> list[float]:
  """CIDEr-D of each caption (arXiv 1411.5726), as COCO's server scores it.

  For n = 1..4, g(s) the counts of the n-grams of s times their weights
  log(N) - log(images whose references have the n-gram, at least 1):

    10 mean_n mean_ref exp(-(l - l_ref)² / (2 sigma²))
       min(g(c), g(ref)) . g(ref) / (|g(c)| |g(ref)|)

  The mean over the captions times 100 is what tables have.

  Args:
    captions: one an image.
    references: several an image; they are the corpus of the weights.
    sigma: of the penalty on the length.
  """
  counted = [[_grams(each) for each in rows] for rows in references]
  frequency = collections.Counter()
  for rows in counted:
    frequency.update({gram for counts in rows for gram in counts})
  size = math.log(max(len(references), 1))
  weigh = lambda counts: {
    gram: count * (size - math.log(max(frequency[gram], 1)))
    for gram, count in counts.items()
  }
  scores = []
  for caption, rows in zip(captions, counted, strict=True):
    own = _grams(caption)
    alike = [_similarity(own, row, weigh, sigma) for row in rows]
    scores.append(10 * sum(alike) / max(len(alike), 1))
  return scores


def _grams(caption: str) -> collections.Counter:
  words = words_of(caption)
  return collections.Counter(
    tuple(words[i : i + n]) for n in ORDERS for i in range(len(words) - n + 1)
  )


def _similarity(own, reference, weigh, sigma: float) -> float:
  """The mean over n of one caption and one reference."""
  length = lambda counts: sum(k for gram, k in counts.items() if len(gram) == 1)
  gap = length(own) - length(reference)
  a, b, total = weigh(own), weigh(reference), 0.0
  for n in ORDERS:
    x, y = ({g: v for g, v in z.items() if len(g) == n} for z in (a, b))
    norm = math.hypot(*x.values()) * math.hypot(*y.values())
    common = sum(min(v, y[g]) * y[g] for g, v in x.items() if g in y)
    total += common / norm if norm else 0.0
  return math.exp(-(gap**2) / (2 * sigma**2)) * total / len(ORDERS)


def require_bleu() -> None:
  """Raises UserError where the package for BLEU is missing."""
  try:
    importlib.import_module('sacrebleu')
  except ImportError as error:
    raise UserError(
      "BLEU needs sacrebleu: pip install 'jaxzoo[captions]', or leave it out "
      "with metrics=('CIDEr',) of the evaluator"
    ) from error


def bleu(
  captions: Sequence[str], references: Sequence[Sequence[str]], order: int = 4
) -> float:
  """BLEU of all captions in percent, by sacrebleu, without smoothing.

  Args:
    captions: one an image.
    references: at least one an image; not all need to have as many.
    order: of the longest n-grams.

  Raises:
    UserError: sacrebleu is not installed.
  """
  require_bleu()
  from sacrebleu.metrics import BLEU

  joined = lambda caption: ' '.join(words_of(caption))
  most = max(len(rows) for rows in references)
  streams = [
    [joined(rows[i]) if i < len(rows) else None for rows in references]
    for i in range(most)
  ]
  metric = BLEU(
    tokenize='none', smooth_method='none', max_ngram_order=order, force=True
  )
  return metric.corpus_score([*map(joined, captions)], streams).score
