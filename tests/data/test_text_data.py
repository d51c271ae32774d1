"""Texts: readers, tokenizers, examples, and errors that say what to do."""

import builtins
import json
import pickle

import numpy as np
import pytest
import tokenizers

from jaxzoo import catalog
from jaxzoo.data import reviews, text
from jaxzoo.data.pipeline import eval_batches
from jaxzoo.data.sources import text as files
from jaxzoo.data.tokenizers.pieces import PieceTokenizer
from jaxzoo.data.tokenizers.words import END, MASK, PAD, UNKNOWN
from jaxzoo.errors import UserError


def config_of(name='text_to_text:tiny', **overrides):
  config = catalog.get_config(name).unlock()
  config.update_from_flattened_dict(overrides)
  return config


def written(tmp_path, name, content):
  path = tmp_path / name
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(content)
  return path


# Files.


def test_sst2_is_read_by_the_names_of_its_columns(tmp_path):
  path = written(
    tmp_path, 'a.tsv', 'label\tsentence\n1\ta "fine film \n0\tbad , bad\n'
  )
  assert files.read_sst2(path) == (
    reviews.Text('a "fine film', 'positive', 1),
    reviews.Text('bad , bad', 'negative', 0),
  )


def test_cola_has_no_header(tmp_path):
  path = written(
    tmp_path, 'a.tsv', "gj04\t1\t\tThey drank.\ngj04\t0\t*\tThey's drank.\n"
  )
  assert files.read_cola(path) == (
    reviews.Text('They drank.', 'acceptable', 1),
    reviews.Text("They's drank.", 'unacceptable', 0),
  )


def test_conll_lists_entities_in_their_order(tmp_path):
  path = written(
    tmp_path,
    'eng.train',
    '-DOCSTART- -X- O O\n\nU.N. NNP I-NP I-ORG\nofficial NN I-NP O\n'
    'New NNP I-NP I-LOC\nYork NNP I-NP I-LOC\nOslo NNP I-NP B-LOC\n\n'
    'Nobody NN O O\n',
  )
  assert files.read_conll(path) == (
    reviews.Text(
      'U.N. official New York Oslo',
      'ORG : U.N. ; LOC : New York ; LOC : Oslo',
    ),
    reviews.Text('Nobody', ''),
  )


def test_lines_are_sentences_and_json_lines_what_was_generated(tmp_path):
  plain = written(tmp_path, 'a.txt', 'one .\n\n  two .\n')
  assert [x.sentence for x in files.read_lines(plain)] == ['one .', 'two .']
  rows = [{'source': 'x', 'generated': 'one .'}, {'text': 'two .'}]
  by_json = written(tmp_path, 'a.jsonl', '\n'.join(map(json.dumps, rows)))
  assert files.read_lines(by_json) == files.read_lines(plain)


@pytest.mark.parametrize(
  'read, content, words',
  [
    (files.read_sst2, 'index\tsentence\n0\tx\n', 'sentence and label'),
    (files.read_sst2, 'sentence\tlabel\n', 'no sentence in it'),
    (files.read_sst2, 'sentence\tlabel\nx\t2\n', "line 2: the label is '2'"),
    (files.read_sst2, 'sentence\tlabel\nx\n', 'line 2: 1 columns'),
    (files.read_cola, 'a\t1\tx\n', 'line 1: 3 columns .* expected 4'),
    (files.read_conll, 'word\n', 'line 1: .*B-KIND'),
    (files.read_lines, '\n', 'no sentence in it'),
  ],
)
def test_broken_file_is_an_error_with_its_line(tmp_path, read, content, words):
  path = written(tmp_path, 'a.tsv', content)
  with pytest.raises(UserError, match=words):
    read(path)


def test_missing_and_binary_files_are_errors(tmp_path):
  with pytest.raises(UserError, match='cannot be read'):
    files.read_cola(tmp_path / 'none.tsv')
  path = tmp_path / 'a.txt'
  path.write_bytes(b'\xff\xfe\x00')
  with pytest.raises(UserError, match='UTF-8'):
    files.read_lines(path)
  broken = written(tmp_path, 'a.jsonl', '{"other": 1}')
  with pytest.raises(UserError, match='line 1'):
    files.read_lines(broken)


def test_task_on_disk_leads_to_the_file_of_its_split(tmp_path):
  written(tmp_path, 'SST-2/dev.tsv', 'sentence\tlabel\ngood\t1\n')
  config = config_of('text_to_text:sst2', **{'data.root': str(tmp_path)})
  assert text.open_texts(config, 'task', 'dev').texts[0].sentence == 'good'
  with pytest.raises(UserError, match='SST-2/train.tsv'):
    text.open_texts(config, 'task', 'train')
  with pytest.raises(UserError, match='no split'):
    text.open_texts(config, 'task', 'test')
  config.data.root = ''
  with pytest.raises(UserError, match='data.root'):
    text.open_texts(config, 'task', 'dev')


# Words.


def test_every_embedded_word_is_in_the_vocabulary():
  tokenizer = reviews.tokenizer()
  settings = reviews.Settings(general=200, train=200, test=50)
  texts = [
    *reviews.load_general(settings),
    *reviews.load_task('reviews', settings, 'train'),
    *reviews.load_task('entities', settings, 'test'),
  ]
  for each in texts:
    for words in (each.sentence, each.answer):
      ids = tokenizer.encode(words)
      assert UNKNOWN not in ids and tokenizer.decode(ids) == words
  assert tokenizer.encode('Zebra, <extra_id_0>')[0] == UNKNOWN
  assert tokenizer.encode('<extra_id_0>') == [MASK]


def test_splits_are_others_and_come_again():
  settings = reviews.Settings(train=50, test=50)
  train = reviews.load_task('reviews', settings, 'train')
  assert train == reviews.load_task('reviews', settings, 'train')
  assert train != reviews.load_task('reviews', settings, 'test')
  share = np.mean([x.label for x in train])
  assert 0.7 < share < 1


def test_opinions_are_rare_in_general_sentences():
  settings = reviews.Settings(general=500)
  known = {*reviews.GOOD, *reviews.BAD}
  share = np.mean(
    [
      bool(known & set(x.sentence.split()))
      for x in reviews.load_general(settings)
    ]
  )
  assert 0 < share < 0.1
  none = settings._replace(opinions=0.0)
  assert not any(
    known & set(x.sentence.split()) for x in reviews.load_general(none)
  )


def piece_file(tmp_path):
  pieces = ['<pad>', '</s>', '<unk>', '▁good', '▁film', '▁bad']
  pieces += [f'<extra_id_{i}>' for i in range(99, -1, -1)]
  model = tokenizers.Tokenizer(
    tokenizers.models.Unigram([(piece, -1.0) for piece in pieces], unk_id=2)
  )
  model.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
  model.decoder = tokenizers.decoders.Metaspace()
  path = tmp_path / 'tokenizer.json'
  model.save(str(path))
  return path


def test_pieces_of_a_published_vocabulary(tmp_path):
  tokenizer = PieceTokenizer(piece_file(tmp_path))
  assert tokenizer.encode('good film') == [3, 4]
  assert tokenizer.decode([3, 4, END, 5]) == 'good film'
  assert tokenizer.vocab_size == 106 and tokenizer.mask == 105
  again = pickle.loads(pickle.dumps(tokenizer))
  assert again.encode('bad') == tokenizer.encode('bad') == [5]


def test_tokenizer_files_that_cannot_be_read_are_errors(tmp_path, monkeypatch):
  with pytest.raises(UserError, match='no file'):
    PieceTokenizer(tmp_path / 'none.json')
  with pytest.raises(UserError, match='no tokenizer'):
    PieceTokenizer(written(tmp_path, 'a.json', '{}'))
  real = builtins.__import__

  def without(name, *args, **kwargs):
    if name == 'sentencepiece':
      raise ImportError(name)
    return real(name, *args, **kwargs)

  monkeypatch.setattr(builtins, '__import__', without)
  with pytest.raises(UserError, match='jaxzoo.text'):
    PieceTokenizer(written(tmp_path, 'spiece.model', 'x'))


# Examples.


def test_example_is_prefix_sentence_and_answer():
  config = config_of()
  source, (encode,) = text.train_data(config)
  tokenizer = text.make_tokenizer(config)
  example = encode(source[3], np.random.default_rng(0))
  own = source.texts[3]
  prefix = [i for i in example['prefix'] if i != PAD]
  assert tokenizer.decode(prefix) == 'sentiment :'
  assert example['prefix'][-1] != PAD, 'the sentence follows at once'
  assert tokenizer.decode(example['sentence']) == own.sentence
  assert tokenizer.decode(example['target']) == own.answer
  assert example['label'] == own.label
  end = list(example['sentence']).index(END)
  assert not example['sentence'][end + 1 :].any()
  assert example['target'][0] == config.label_tokens[own.label]


def test_text_that_is_too_long_is_ended():
  np.testing.assert_array_equal(text.padded([5, 6, 7], 3), [5, 6, END])
  np.testing.assert_array_equal(text.padded([5], 3), [5, END, PAD])
  np.testing.assert_array_equal(text.padded([], 2), [END, PAD])


def test_runs_of_words_left_out_are_one_mask():
  rng = np.random.default_rng(0)
  for _ in range(20):
    ids = list(range(10, 22))
    kept = text.left_out(ids, MASK, 0.5, rng)
    assert not any(a == b == MASK for a, b in zip(kept, kept[1:], strict=False))
    words = [i for i in kept if i != MASK]
    assert words == sorted(words) and set(words) <= set(ids)
  assert text.left_out(ids, MASK, 0.0, rng) == ids
  assert text.left_out(ids, MASK, 1.0, rng) == [MASK]


def test_restoring_asks_for_the_whole_sentence():
  config = config_of('text_to_text:denoise')
  source, (encode,) = text.train_data(config)
  tokenizer = text.make_tokenizer(config)
  example = encode(source[0], np.random.default_rng(0))
  assert tokenizer.decode(example['target']) == source.texts[0].sentence
  assert MASK in example['sentence']
  again = encode(source[0], np.random.default_rng(0))
  np.testing.assert_array_equal(example['sentence'], again['sentence'])
  test = text.open_texts(config, 'general', 'test')
  assert test.texts[0] != source.texts[0]


def test_rewriting_has_both_prefixes_and_no_answer():
  config = config_of('dfkd_t3:tiny')
  source, (encode,) = text.train_data(config)
  example = encode(source[0], np.random.default_rng(0))
  assert set(example) == {'prefix', 'sentence', 'rewrite'}
  # But it is judged by the answers of the task.
  test, steps = text.eval_data(config, 'test')
  batch = next(iter(eval_batches(test, steps, batch_size=4)))
  assert {'prefix', 'sentence', 'target', 'label'} <= set(batch)


@pytest.mark.parametrize(
  'field, value, words',
  [
    ('data.task', 'review', 'did you mean reviews'),
    ('data.text', 'generel', 'did you mean general'),
    ('data.records', 'answer', 'did you mean answers'),
    ('data.text', 'general', 'only those of the task have answers'),
    ('data.tokenizer', 'none.json', 'no file none.json'),
    ('vocab_size', 100, 'more than vocab_size=100'),
    ('label_tokens', (7, 8), 'set --config.label_tokens='),
    ('labels', ('bad', 'good'), "labels=\\('negative', 'positive'\\)"),
    ('prefix_length', 1, 'raise prefix_length'),
  ],
)
def test_field_that_cannot_be_is_an_error(field, value, words):
  with pytest.raises(UserError, match=words):
    text.train_data(config_of(**{field: value}))


def test_labels_that_begin_alike_are_an_error():
  with pytest.raises(UserError, match='begin with the same'):
    text.label_tokens(reviews.tokenizer(), ('good one', 'good film'))
