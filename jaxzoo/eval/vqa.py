"""Visual question answering as VQA v2 scores it: agreement with ten people."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from jaxzoo.data import vision_language as data
from jaxzoo.data.answers import agreement, normalize
from jaxzoo.errors import UserError
from jaxzoo.eval.evaluator import Evaluation


def accuracy(
  predicted: Sequence[str], given: Sequence[Sequence[str]]
) -> Float[np.ndarray, ' n']:
  """Of each answer, in [0, 1], see `answers.agreement`.

  Args:
    predicted: the answers.
    given: of each question, the people's; compared after `normalize`.
  """
  scores = []
  for answer, people in zip(predicted, given, strict=True):
    answer = normalize(answer)
    matches = sum(answer == normalize(each) for each in people)
    scores.append(agreement(matches, len(people)))
  return np.array(scores, float)


def make_evaluator(config, *, split: str = 'test'):
  """predict -> Evaluation: accuracy in percent, of all and of each type.

  The table `answers` has a row a question: its number, question, answer and
  score, which is what a server of VQA wants of a split without answers.

  Raises:
    UserError: the config is not for questions.
  """
  if config.task != 'vqa':
    raise UserError(f"evals: kind 'vqa' needs task='vqa', not {config.task!r}")
  source, steps = data.eval_data(config, split)
  vocabulary = data.answer_vocabulary(config)
  questions = data.read_pictures(config, split).questions
  known = np.array([bool(each.answers) for each in questions])
  kinds = np.array([each.kind for each in questions])

  def evaluate(predict) -> Evaluation:
    outputs, mask = predict(source, steps)
    chosen = [vocabulary[i] for i in outputs['answer']]
    scores = accuracy(chosen, [each.answers for each in questions])
    mean = lambda rows: (
      float(100 * scores[rows].mean()) if rows.any() else np.nan
    )
    counted = mask & known
    metrics = {'accuracy': mean(counted)}
    for kind in sorted(set(kinds)):
      name = kind.replace('/', '_')
      metrics[f'accuracy_{name}'] = mean(counted & (kinds == kind))

    def tables():
      rows = [('question_id', 'question', 'answer', 'accuracy')]
      for i in np.flatnonzero(mask):
        each = questions[i]
        score = round(float(scores[i]), 3) if known[i] else ''
        rows.append((each.number, each.text, chosen[i], score))
      return {'answers': rows}

    return Evaluation(metrics, tables=tables)

  return evaluate
