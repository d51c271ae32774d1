"""Losses that learn from a teacher."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxzoo.errors import UserError
from jaxzoo.models.losses.distillation import (
  deit_loss,
  hard_distillation,
  soft_distillation,
)

B, K = 3, 7
OWN, TAUGHT, TEACHER = np.random.default_rng(0).normal(size=(3, B, K))
TARGETS = np.asarray(jax.nn.softmax(TAUGHT[::-1]))


def test_soft_distillation_is_least_where_student_and_teacher_agree():
  loss = lambda z: soft_distillation(z, TEACHER, 3.0)
  assert abs(loss(TEACHER + 5)) < 1e-6  # logits may differ by a constant
  assert loss(TAUGHT) > 1e-3
  np.testing.assert_allclose(jax.grad(loss)(TEACHER), 0, atol=1e-6)


def test_soft_distillation_divides_by_examples_and_classes():
  p = lambda z: np.exp(z / 2) / np.exp(z / 2).sum(1, keepdims=True)
  t = p(TEACHER)
  want = 4 * np.sum(t * (np.log(t) - np.log(p(TAUGHT)))) / (B * K)
  got = soft_distillation(TAUGHT, TEACHER, 2.0)
  np.testing.assert_allclose(got, want, rtol=1e-5)


def test_hard_distillation_sees_only_the_teachers_first_choice():
  flat = np.where(TEACHER == TEACHER.max(1, keepdims=True), 1.0, 0.0)
  got = hard_distillation(TAUGHT, TEACHER)
  np.testing.assert_allclose(got, hard_distillation(TAUGHT, flat), rtol=1e-6)
  log_p = jax.nn.log_softmax(TAUGHT)[np.arange(B), TEACHER.argmax(1)]
  np.testing.assert_allclose(got, -log_p.mean(), rtol=1e-5)


@pytest.mark.parametrize('kind', ['hard', 'soft'])
def test_each_head_learns_from_its_own_and_the_teacher_from_none(kind):
  def loss(own, taught, teacher, targets):
    return deit_loss((own, taught), teacher, targets, kind=kind, alpha=0.25)[0]

  grads = jax.grad(loss, (0, 1, 2))(OWN, TAUGHT, TEACHER, TARGETS)
  assert all(np.abs(g).max() > 1e-4 for g in grads[:2])
  np.testing.assert_array_equal(grads[2], 0)
  own = jax.grad(loss)(OWN, -TAUGHT, -TEACHER, TARGETS)
  np.testing.assert_array_equal(own, grads[0])
  taught = jax.grad(loss, 1)(-OWN, TAUGHT, TEACHER, TARGETS[::-1])
  np.testing.assert_array_equal(taught, grads[1])


def test_alpha_weighs_the_two_terms():
  for alpha in (0.0, 0.3, 1.0):
    loss, terms = deit_loss((OWN, TAUGHT), TEACHER, TARGETS, alpha=alpha)
    want = (1 - alpha) * terms['base'] + alpha * terms['distillation']
    np.testing.assert_allclose(loss, want, rtol=1e-6)
  alone, _ = deit_loss((OWN, TAUGHT), None, TARGETS, kind='none')
  np.testing.assert_allclose(alone, terms['base'])
  assert jnp.shape(alone) == ()


def test_unknown_kind_is_an_error():
  with pytest.raises(UserError, match='softish'):
    deit_loss((OWN, TAUGHT), TEACHER, TARGETS, kind='softish')
