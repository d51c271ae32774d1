"""Searching images by text: the library as the README shows it, the command."""

import json
import os
import shutil

import jax
import ml_collections
import numpy as np
import pytest
from PIL import Image

from jaxzoo import catalog, retrieve, runs
from jaxzoo.data import person_retrieval
from jaxzoo.errors import UserError
from jaxzoo.eval import gallery as galleries
from jaxzoo.eval.gallery import Gallery
from jaxzoo.eval.retrieval import retrieval_metrics
from jaxzoo.main import train
from jaxzoo.models.backbones import clip
from jaxzoo.models.layers.image import normalize
from jaxzoo.retrieve import Retriever
from jaxzoo.train import mesh as meshes
from jaxzoo.weights.clip import export_clip
from jaxzoo.weights.writers import write_safetensors

QUERY = 'a man with a red backpack'


@pytest.fixture(scope='session')
def run(tmp_path_factory):
  """A trained run with checkpoints of steps 2 and 4, and its result."""
  config = catalog.get_config('cfam:tiny')
  config.towers.update(image_depth=1, text_depth=1)
  config.loss.update(ls=0.0, m=0.0)  # retrieval has no use for these modules
  config.epochs = 1.0
  config.save_epochs = config.eval_epochs = 0.5
  with config.unlocked():
    config.evals = ml_collections.ConfigDict({'test': config.evals.test})
  workdir = tmp_path_factory.mktemp('retrieve') / 'run'
  result = train(config, workdir)
  split = person_retrieval.read_split(config, 'ufine6926', 'test')
  return workdir, result['metrics'], split


@pytest.fixture(scope='session')
def retriever(run):
  return Retriever.from_run(run[0])


@pytest.fixture(scope='session')
def pictures(run):
  return run[2].image_paths


@pytest.fixture
def folder(pictures, tmp_path):
  """Five good pictures, one of them deeper, and two that are damaged."""
  folder = tmp_path / 'photos'
  (folder / 'deeper').mkdir(parents=True)
  names = ['a.jpg', 'b c.JPG', 'd.jpg', 'é.jpg', 'deeper/f.jpg']
  for name, path in zip(names, pictures, strict=False):
    shutil.copy(path, folder / name)
  good = (folder / 'a.jpg').read_bytes()
  (folder / '0.jpg').write_bytes(good[: len(good) // 2])
  (folder / 'x.png').write_bytes(b'no picture')
  (folder / 'notes.txt').write_text('no picture either')
  (folder / '.hidden.jpg').write_bytes(good)
  return folder


@pytest.fixture(scope='session')
def gallery(retriever, pictures):
  return retriever.embed_images(pictures)


def test_the_readme_s_lines_find_images(run, folder, capsys, monkeypatch):
  monkeypatch.chdir(run[0].parent)
  retriever = Retriever.from_run('run')
  gallery = retriever.embed_images(f'{folder}/')
  for hit in retriever.search('a man with a red backpack', gallery, k=3):
    print(hit.score, hit.path)
  lines = capsys.readouterr().out.splitlines()
  scores = [float(line.split()[0]) for line in lines]
  assert len(scores) == 3
  assert scores == sorted(scores, reverse=True)
  assert all(os.path.exists(line.split(' ', 1)[1]) for line in lines)


def test_embeddings_give_the_metrics_of_the_run_s_own_evaluation(
  run, retriever, gallery
):
  _, metrics, split = run
  captions = retriever.embed_captions(split.captions)
  found = retrieval_metrics(
    captions, gallery.embeddings, split.caption_pids, split.image_pids
  )
  for name in ('R@1', 'mAP', 'mINP', 'mSD'):
    assert found[name] == pytest.approx(metrics[f'test/{name}'], abs=1e-3)


def test_search_ranks_by_cosine(retriever, gallery):
  hits = retriever.search(QUERY, gallery, k=1000)
  cosines = gallery.embeddings @ retriever.embed_captions([QUERY])[0]
  order = np.argsort(-cosines, kind='stable')
  assert [hit.path for hit in hits] == [gallery.paths[i] for i in order]
  np.testing.assert_allclose(
    [hit.score for hit in hits], cosines[order], atol=1e-6
  )
  assert [hit.rank for hit in hits] == list(range(1, len(hits) + 1))


def test_one_caption_alone_and_among_others_has_the_same_embedding(retriever):
  alone = retriever.embed_captions([QUERY])
  among = retriever.embed_captions(['a woman', QUERY, 'a child'])
  np.testing.assert_allclose(alone[0], among[1], atol=1e-5)


def test_damaged_images_are_left_out_and_reported(retriever, folder):
  gallery = retriever.embed_images(folder)
  names = [os.path.relpath(path, folder) for path in gallery.paths]
  assert names == ['a.jpg', 'b c.JPG', 'd.jpg', 'deeper/f.jpg', 'é.jpg']
  bad = [os.path.relpath(path, folder) for path in gallery.unreadable]
  assert bad == ['0.jpg', 'x.png']
  np.testing.assert_allclose(
    np.linalg.norm(gallery.embeddings, axis=1), 1, atol=1e-5
  )


def test_embeddings_belong_to_their_paths_though_the_first_is_damaged(
  retriever, folder
):
  gallery = retriever.embed_images(folder)
  for path, embedding in zip(gallery.paths, gallery.embeddings, strict=True):
    alone = retriever.embed_images([path])
    np.testing.assert_allclose(alone.embeddings[0], embedding, atol=1e-5)


def test_a_folder_without_one_readable_image_is_an_error(retriever, folder):
  paths = [str(folder / 'x.png'), str(folder / 'gone.jpg')]
  with pytest.raises(UserError, match='none of the 2 images'):
    retriever.embed_images(paths)


def test_galleries_of_any_size_share_one_compilation(run, pictures, caplog):
  retriever = Retriever.from_run(run[0], batch_size=24)
  with jax.log_compiles(), caplog.at_level('WARNING'):
    retriever.embed_images(pictures[:3])
    retriever.embed_images(pictures)
  compiled = [line for line in caplog.messages if 'Compiling jit(rows)' in line]
  assert len(compiled) == 1


def test_an_index_comes_back_as_it_was(gallery, tmp_path):
  # Names of files are bytes; not all of them are text.
  odd = os.fsdecode(b'\xff\xfe \xc3\xa9.jpg')
  stored = gallery._replace(
    paths=(odd, *gallery.paths[1:]), unreadable=('x y.jpg',)
  )
  stored.save(tmp_path / 'index.npz')
  loaded = Gallery.load(tmp_path / 'index.npz')
  for name, value in stored._asdict().items():
    np.testing.assert_array_equal(getattr(loaded, name), value)
  assert loaded.unreadable == ('x y.jpg',)
  assert os.listdir(tmp_path) == ['index.npz']


def test_an_index_is_read_without_pickles(tmp_path):
  np.savez(tmp_path / 'bad.npz', paths=np.array([print], object))
  for name in ('bad.npz', 'cut.npz', 'text.npz', 'array.npz'):
    path = tmp_path / name
    if name == 'cut.npz':
      path.write_bytes((tmp_path / 'bad.npz').read_bytes()[:60])
    elif name == 'text.npz':
      path.write_text('no index')
    elif name == 'array.npz':
      with path.open('wb') as file:
        np.save(file, np.zeros(3))
    with pytest.raises(UserError, match='no index'):
      Gallery.load(path)


def test_only_new_and_changed_images_are_embedded_again(retriever, folder):
  known = retriever.embed_images(folder)
  marked = known._replace(embeddings=np.zeros_like(known.embeddings))
  (folder / 'new.png').write_bytes((folder / 'a.jpg').read_bytes())
  Image.new('RGB', (9, 27)).save(folder / 'd.jpg')
  (folder / 'b c.JPG').unlink()
  again = retriever.embed_images(folder, known=marked)
  norms = {
    os.path.relpath(path, folder): round(float(np.linalg.norm(row)), 3)
    for path, row in zip(again.paths, again.embeddings, strict=True)
  }
  assert norms == {
    'a.jpg': 0, 'd.jpg': 1, 'deeper/f.jpg': 0, 'new.png': 1, 'é.jpg': 0,
  }  # fmt: skip


def test_the_step_is_chosen_and_another_step_s_gallery_refused(
  run, retriever, gallery
):
  earlier = Retriever.from_run(run[0], step=2)
  assert earlier.name.endswith('step 2')
  assert retriever.name.endswith('step 4')
  with pytest.raises(UserError, match='another model .*step 4'):
    earlier.search(QUERY, gallery)
  with pytest.raises(UserError, match='no checkpoint of step 3, only 2, 4'):
    Retriever.from_run(run[0], step=3)


def test_best_is_the_step_with_the_best_metric(run, tmp_path):
  workdir = tmp_path / 'run'
  shutil.copytree(run[0], workdir)
  for step, value in ((2, 90.0), (4, 10.0)):
    metrics = workdir / 'checkpoints' / str(step) / 'metrics' / 'metrics'
    metrics.write_text(json.dumps({'test/R@1': value}))
    (metrics.parent.parent / 'manifest.json').unlink()
  assert Retriever.from_run(workdir, step='best').name.endswith('step 2')


def test_a_damaged_newest_checkpoint_is_passed_over_and_left_alone(
  run, tmp_path
):
  workdir = tmp_path / 'run'
  shutil.copytree(run[0], workdir)
  data = max(
    (workdir / 'checkpoints/4/state').rglob('*'), key=lambda x: x.stat().st_size
  )
  content = bytearray(data.read_bytes())
  content[len(content) // 2] ^= 1
  data.write_bytes(content)
  assert Retriever.from_run(workdir).name.endswith('step 2')
  with pytest.raises(UserError, match='4 is damaged: take another step'):
    Retriever.from_run(workdir, step=4)
  assert sorted(os.listdir(workdir / 'checkpoints')) == ['2', '4']


def test_a_run_is_read_whatever_its_optimizer_was(run, retriever, tmp_path):
  workdir = tmp_path / 'run'
  shutil.copytree(run[0], workdir)
  config = json.loads((workdir / 'config.json').read_text())
  config['optim'] = {}
  (workdir / 'config.json').write_text(json.dumps(config))
  assert Retriever.from_run(workdir).digest == retriever.digest


def test_a_longer_query_is_cut_with_a_warning(retriever, caplog):
  query = 'a man ' * 20
  with caplog.at_level('WARNING'):
    long = retriever.embed_captions([query])
  assert 'the query has 42 tokens and the model reads 24' in caplog.text
  cut = retriever.embed_captions(['a man ' * 11])
  np.testing.assert_allclose(long, cut, atol=1e-6)


@pytest.mark.parametrize(
  'towers',
  [
    clip.Towers('vit', 64, 1, 1, 8, 64, 1, 1, 49408, 16),
    clip.Towers('resnet', 8, (1, 1, 1, 1), 4, 32, 64, 1, 1, 49408, 16),
  ],
  ids=['vit', 'resnet'],
)
def test_published_clip_prepares_images_as_clip_does(
  pictures, tmp_path, towers
):
  model = clip.Clip(towers)
  shapes = jax.eval_shape(
    model.init,
    jax.random.key(1),
    np.zeros((1, 32, 32, 3)),
    np.zeros((1, 20), int),
  )
  rng = np.random.default_rng(0)
  # Positive, because some are variances.
  variables = jax.tree.map(
    lambda x: rng.uniform(0, 0.5, x.shape).astype(np.float32), dict(shapes)
  )
  path = tmp_path / 'clip.safetensors'
  state_dict = export_clip(variables['params'], variables.get('batch_stats'))
  write_safetensors(path, state_dict)
  retriever = Retriever.from_weights(path)
  assert retriever.text_length == 20
  found = retriever.embed_images(pictures[:2]).embeddings
  for picture, embedding in zip(pictures, found, strict=False):
    with Image.open(picture) as image:  # 64 high, 32 wide
      image = np.asarray(image.convert('RGB'))[16:48]
    _, want = model.apply(
      variables, normalize(image[None]), method='encode_image'
    )
    want = np.asarray(want[0]) / np.linalg.norm(want[0])
    np.testing.assert_allclose(embedding, want, atol=1e-4)


def test_a_fine_tuned_checkpoint_is_used_as_its_config_says(
  run, retriever, gallery, pictures, tmp_path
):
  mesh = meshes.make_mesh({'data': -1})
  config, state = runs.read_run(run[0], 'newest', mesh)
  towers = {name: state.params[name] for name in ('image', 'text')}
  path = tmp_path / 'fine_tuned.safetensors'
  tensors = export_clip(jax.device_get(towers))
  write_safetensors(path, {f'base_model.{k}': x for k, x in tensors.items()})
  again = Retriever.from_weights(path, config=config)
  found = again.embed_images(pictures).embeddings
  np.testing.assert_allclose(found, gallery.embeddings, atol=1e-5)
  np.testing.assert_allclose(
    again.embed_captions([QUERY]), retriever.embed_captions([QUERY]), atol=1e-5
  )


def test_a_sheet_shows_every_hit_even_wide_ones_and_lost_ones(
  pictures, tmp_path
):
  path = tmp_path / 'wide.png'
  Image.new('RGB', (800, 20)).save(path)
  few = [galleries.Hit(1, 0.5, pictures[0])]
  many = [galleries.Hit(i, 0.5, str(path)) for i in range(1, 8)]
  one_row = galleries.draw(QUERY, few).shape[0]
  rows = galleries.draw(QUERY, many + [galleries.Hit(8, 0.1, 'lost.png')])
  assert rows.shape[0] > 2 * one_row
  assert rows.dtype == np.uint8


def test_the_command_prints_the_ranking_and_draws_it(
  run, folder, tmp_path, capsys
):
  index, sheet = tmp_path / 'index.npz', tmp_path / 'found.png'
  arguments = [f'--workdir={run[0]}', f'--index={index}', '--k=2', QUERY]
  images = [f'--images={folder}', f'--sheet={sheet}']
  assert retrieve.main([*arguments, *images]) == 0
  first = capsys.readouterr().out.splitlines()
  assert first[0].split() == ['rank', 'score', 'path']
  assert [line.split()[0] for line in first[1:3]] == ['1', '2']
  assert all(str(folder) in line for line in first[1:3])
  assert first[3].startswith('2 unreadable')
  with Image.open(sheet) as picture:
    assert picture.width > 500
  # The index is enough by itself.
  shutil.rmtree(folder)
  assert retrieve.main([*arguments, '--sheet=']) == 0
  assert capsys.readouterr().out.splitlines()[:4] == first[:4]


@pytest.mark.parametrize(
  'arguments, message',
  [
    (['--workdir=NOWHERE', '--images=FOLDER', 'x'], 'no run in NOWHERE'),
    (['--workdir=RUN', '--images=EMPTY', 'x'], 'no images in EMPTY'),
    (['--workdir=RUN', '--images=NOWHERE', 'x'], 'no folder NOWHERE'),
    (['--workdir=RUN', '--images=FOLDER', ' '], 'empty query'),
    (['--workdir=RUN', 'x'], 'give --images=DIR or --index=FILE'),
    (['--workdir=RUN', '--index=NOWHERE', 'x'], 'no index NOWHERE'),
    (['--workdir=RUN', '--images=FOLDER', '--k=0', 'x'], 'at least one'),
    (
      ['--workdir=RUN', '--images=FOLDER', '--step=last', 'x'],
      "expected a number, 'newest' or 'best'",
    ),
    (['--weights=NOWHERE', '--images=FOLDER', 'x'], 'no such file'),
    (
      ['--workdir=RUN', '--images=FOLDER', '--sheet=NOWHERE/a.png', 'x'],
      'there is no folder NOWHERE',
    ),
    (
      ['--workdir=RUN', '--images=FOLDER', '--sheet=a.sheet', 'x'],
      'no kind of picture',
    ),
    (['--workdir=EMPTY', '--images=FOLDER', 'x'], 'no run in EMPTY'),
  ],
)
def test_a_mistake_on_the_command_line_is_explained(
  run, folder, tmp_path, capsys, arguments, message
):
  (tmp_path / 'empty').mkdir()
  places = {
    'NOWHERE': tmp_path / 'nowhere',
    'EMPTY': tmp_path / 'empty',
    'FOLDER': folder,
    'RUN': run[0],
  }
  for name, path in places.items():
    arguments = [each.replace(name, str(path)) for each in arguments]
    message = message.replace(name, str(path))
  assert retrieve.main(arguments) == 2
  assert message in capsys.readouterr().err
