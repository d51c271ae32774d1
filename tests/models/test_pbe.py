"""PBE: the attack, the rounds, the choice of clean pictures, the two stages."""

import functools
import math

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
import pytest

from jaxzoo.data import backdoor, triggers
from jaxzoo.errors import UserError
from jaxzoo.eval.backdoor import success
from jaxzoo.models.robustness import pbe

SIZE = 8
EXAMPLES = 10


def config_of(**overrides):
  config = ml_collections.ConfigDict(
    dict(
      model='resnet18',
      model_options=dict(depths=(1,), width=4, small_stem=True),
      num_classes=3,
      image_size=(SIZE, SIZE),
      in_chans=3,
      dtype='float32',
      scan=False,
      remat='none',
      microbatches=1,
      batch_size=4,
      mean=(0.0, 0.0, 0.0),
      std=(1.0, 1.0, 1.0),
      erase=dict(
        examples=EXAMPLES,
        epochs=1.5,  # of two batches: three steps
        clean=True,
        rounds=((0.5, 2, 1, 0),),
        radius=0.1,
        step=0.05,
        iterations=2,
        pad=1,
        degrees=10.0,
        flip=0.5,
      ),
    )
  )
  config.update_from_flattened_dict(overrides)
  return config


def batch_of(seed, places=(0, 1, 2, 3)):
  rng = np.random.default_rng(seed)
  rows = len(places)
  return {
    'image': rng.integers(1, 256, (rows, SIZE, SIZE, 3), np.uint8),
    'label': rng.integers(0, 3, rows).astype(np.int32),
    'index': np.array(places, np.int32),
    'poisoned': np.array(places) < 3,
  }


BATCHES = (
  batch_of(0),
  batch_of(1, (4, 5, 6, 7)),
  batch_of(2, (8, 9, 0, 1)),
)


@functools.cache
def compiled(clean=True):
  rounds = ((0.5, 2, 1, 0),) if clean else ((0.5, 1, 1, 0), (0.8, 1, 0, 1))
  config = config_of(**{'erase.clean': clean, 'erase.rounds': rounds})
  system = pbe.build(config, optax.sgd(0.05, momentum=0.9))
  return system, jax.jit(system.step)


@functools.cache
def run(clean=True, steps=7):
  system, step = compiled(clean)
  states, history = [jax.jit(system.init)(jax.random.key(0), BATCHES[0])], []
  for i in range(steps):
    state, metrics = step(states[-1], BATCHES[i % 3])
    states.append(jax.device_get(state))
    history.append({k: float(v) for k, v in metrics.items()})
  return states, history


# The attack.


def test_attack_climbs_to_the_corner_of_its_ball_on_a_linear_loss():
  w, x = jnp.array([1.0, -2.0, 0.0]), jnp.zeros((2, 3))
  found, path = pbe.pgd(
    lambda x: (x @ w).sum(), x, radius=0.3, step=0.2, iterations=4
  )
  np.testing.assert_allclose(found, [[0.3, -0.3, 0.0]] * 2, rtol=1e-6)
  np.testing.assert_allclose(path, [0, 1.2, 1.8, 1.8], rtol=1e-5)


# Rounds.


def test_published_rounds_as_steps():
  plan = pbe.make_plan(pbe.AFT, 50000, 128, 100)
  assert (plan.sizes, plan.batches, plan.adversarial) == ([2500], [20], [60])
  assert plan.end == 100 + 400
  plan = pbe.make_plan(pbe.PROGRESSIVE, 50000, 128, 0)
  np.testing.assert_array_equal(plan.sizes, [2500, 10000, 25000, 35000])
  np.testing.assert_array_equal(plan.batches, [20, 79, 196, 274])
  np.testing.assert_array_equal(plan.starts, [0, 200, 990, 2950])
  np.testing.assert_array_equal(plan.adversarial, [200, 31, 31, 31])
  assert plan.end == 5690
  assert pbe.epochs_of(pbe.PROGRESSIVE, 50000, 128, 0) * 390 == plan.end


@pytest.mark.parametrize('share, want', [(0.05, 2500), (0.7, 35000)])
def test_shares_are_exact(share, want):
  assert pbe.share_of(50000, share) == want


def test_similar_logits_come_first():
  rng = np.random.default_rng(0)
  a, b = rng.normal(size=(2, 20, 5)).astype(np.float32)
  b[3], b[7] = 2 * a[3], -a[7]
  found = pbe.similarity(a, b)
  cos = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
  np.testing.assert_allclose(found, 0.5 + cos / 2, atol=1e-6)
  places = pbe.ranks(found)
  assert places[3] == 0 and places[7] == 19
  np.testing.assert_array_equal(pbe.ranks(jnp.zeros(4)), range(4))


# Augmentation.


def test_augmentation_is_nothing_where_all_is_off():
  image = np.random.default_rng(0).uniform(size=(2, 5, 6, 3))
  same = pbe.augment(jax.random.key(0), image, pad=0, degrees=0, flip=0)
  np.testing.assert_array_equal(same, image)


def test_quarter_turn_is_exact():
  image = np.random.default_rng(0).uniform(size=(5, 5, 2)).astype(np.float32)
  np.testing.assert_allclose(pbe.rotate(image, 0.0), image, atol=1e-6)
  turned = pbe.rotate(image, math.pi / 2)
  alike = [np.allclose(turned, np.rot90(image, k), atol=1e-5) for k in (1, 3)]
  assert sum(alike) == 1


def test_shifts_stay_within_the_margin():
  image = np.zeros((64, 9, 9, 1), np.float32)
  image[:, 4, 4] = 1
  moved = pbe.augment(jax.random.key(1), image, pad=2, degrees=0, flip=0)
  rows, columns = np.nonzero(moved[..., 0].max(0))
  assert (rows.min(), rows.max(), columns.min(), columns.max()) == (2, 6, 2, 6)
  np.testing.assert_array_equal(moved.sum((1, 2, 3)), 1)


# The system.


def test_bank_holds_what_was_trained_on():
  states, _ = run()
  bank = states[3].extra['bank']
  assert bank['seen'].all()
  np.testing.assert_array_equal(bank['image'][4:8], BATCHES[1]['image'])
  np.testing.assert_array_equal(bank['image'][:2], BATCHES[2]['image'][2:])
  np.testing.assert_array_equal(bank['label'][8:], BATCHES[2]['label'][:2])
  for state in states[4:]:  # and does not change while erasing
    jax.tree.map(np.testing.assert_array_equal, state.extra['bank'], bank)


def test_stages_and_adversarial_epochs():
  _, history = run()
  assert [m['round'] for m in history] == [0, 0, 0, 1, 1, 1, 1]
  assert [m['adversarial'] for m in history] == [0, 0, 0, 1, 1, 0, 0]
  _, history = run(clean=False)
  assert [m['round'] for m in history] == [0, 0, 0, 1, 1, 2, 2]
  assert [m['adversarial'] for m in history] == [0, 0, 0, 1, 1, 1, 0]


def test_known_clean_pictures_are_clean():
  states, history = run()
  assert history[3]['selected_poison'] == 0
  chosen = states[4].extra['rank'] < 5
  assert not (chosen & states[4].extra['bank']['poisoned']).any()


def test_erasing_does_not_look_at_the_pipeline():
  states, _ = run()
  _, step = compiled()
  state = jax.device_put(states[4])
  one, _ = step(state, BATCHES[0])
  other, _ = step(state, BATCHES[1])
  for a, b in zip(
    *map(jax.tree.leaves, (one.params, other.params)), strict=True
  ):
    np.testing.assert_array_equal(a, b)


def test_progressive_rounds_take_the_least_changed_logits():
  states, history = run(clean=False)
  system, _ = compiled(clean=False)
  bank = states[3].extra['bank']
  logits = lambda state: system.predict(state, {'image': bank['image']})[
    'logits'
  ]
  infected = states[4].extra['infected']
  np.testing.assert_allclose(infected, logits(states[3]), rtol=1e-4, atol=1e-4)
  scores = pbe.similarity(infected, logits(states[5]))
  np.testing.assert_array_equal(states[6].extra['rank'], pbe.ranks(scores))
  chosen = np.argsort(-scores, kind='stable')[:8]
  share = bank['poisoned'][chosen].mean()
  assert history[5]['selected_poison'] == pytest.approx(share)


def test_every_epoch_is_over_the_chosen_pictures():
  states, _ = run()
  config = config_of()
  plan = pbe.make_plan([pbe.Round(*config.erase.rounds[0])], EXAMPLES, 4, 3)
  state = states[4]
  seen = []
  for step in (3, 4):  # one epoch of five pictures
    at = state._replace(step=jnp.int32(step))
    chosen, _ = pbe.choose(at, BATCHES[0], plan, jnp.bool_(False))
    for image in np.asarray(chosen['image']):
      same = (state.extra['bank']['image'] == image).all((1, 2, 3))
      seen.append(int(np.flatnonzero(same)[0]))
  chosen = np.flatnonzero(state.extra['rank'] < 5)
  assert set(seen[:5]) == set(chosen)
  assert set(seen) == set(chosen)


@pytest.mark.parametrize(
  'field, value',
  [('erase.rounds', ()), ('erase.rounds', ((0.0, 1, 0, 0),)),
   ('erase.rounds', ((0.5, 1),)), ('erase.iterations', 0)],
)  # fmt: skip
def test_mistakes_are_told(field, value):
  with pytest.raises(UserError, match='erase'):
    pbe.build(config_of(**{field: value}), optax.sgd(0.1))


# Attacks and metrics.


def attack_of(**overrides):
  fields = dict(
    kind='warp', rate=0.1, noise_ratio=2.0, target=1, seed=0, blend_ratio=0.1,
    sig_delta=10.0, sig_frequency=6, warp_strength=0.5,
  )  # fmt: skip
  return ml_collections.ConfigDict(
    dict(attack=fields | overrides, image_size=(SIZE, SIZE), num_classes=3)
  )


def test_roles_are_exact_numbers():
  roles = backdoor.choose_roles(50, attack_of().attack)
  assert np.bincount(roles).tolist() == [35, 5, 10]
  patch = backdoor.choose_roles(50, attack_of(kind='patch').attack)
  assert np.bincount(patch).tolist() == [45, 5]


@pytest.mark.parametrize('kind', triggers.KINDS)
def test_poisoned_records_have_trigger_and_label(kind):
  config = attack_of(kind=kind)
  transform = backdoor.poison(config)
  image = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), np.uint8)
  record = {'image': image, 'label': np.int32(2), 'index': np.int32(0)}
  rng = np.random.default_rng(0)
  clean = transform({**record, 'role': backdoor.CLEAN}, rng)
  bad = transform({**record, 'role': backdoor.POISONED}, rng)
  np.testing.assert_array_equal(clean['image'], image)
  assert (clean['label'], clean['poisoned']) == (2, False)
  assert (bad['label'], bad['poisoned']) == (1, True)
  assert (bad['image'] != image).any() and bad['image'].dtype == np.uint8
  if kind == 'patch':
    np.testing.assert_array_equal(bad['image'][:-3], image[:-3])
  if kind == 'warp':
    noisy = transform({**record, 'role': backdoor.NOISY}, rng)
    assert (noisy['label'], noisy['poisoned']) == (2, False)
    assert (noisy['image'] != bad['image']).any()


def test_target_of_all_classes_is_the_next():
  attack = attack_of(target=-1).attack
  labels = [backdoor.target_label(y, attack, 3) for y in (0, 1, 2)]
  assert labels == [1, 2, 0]
  with pytest.raises(UserError, match='3 classes'):
    backdoor.target_label(0, attack_of(target=3).attack, 3)


def test_unwarped_grid_samples_the_picture_itself():
  image = np.random.default_rng(0).uniform(size=(6, 5, 2)).astype(np.float32)
  grid = triggers.identity_grid(6, 5)
  np.testing.assert_allclose(triggers.sample(image, grid), image, atol=1e-5)


def test_success_of_an_attack():
  labels = np.array([0, 0, 1, 1, 2])
  predicted = np.array([0, 1, 0, 1, 0])
  mask = np.array([1, 1, 1, 1, 0], bool)
  found = success(predicted, labels, np.zeros(5, int), mask)
  assert found == {'asr': 50.0, 'asr_others': 50.0}
  none = success(predicted[:2], labels[:2], np.zeros(2, int), mask[:2])
  assert none['asr'] == 50 and np.isnan(none['asr_others'])
