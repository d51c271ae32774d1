"""CLIP's tokenizer against a naive one, and what callers rely on."""

import concurrent.futures
import html
import itertools
import pickle
import subprocess
import sys

import numpy as np
import pytest
import regex
from hypothesis import example, given, settings
from hypothesis import strategies as st

from jaxzoo.data.tokenizers import clip
from jaxzoo.data.tokenizers.clip import END, MASK, START, ClipTokenizer
from jaxzoo.errors import UserError

plain = ClipTokenizer()
masked = ClipTokenizer(mask_token=True)


def naive_encode(text, mask_token=False):
  """Byte pair encoding by its definition: merge the pair of lowest rank."""
  vocabulary = clip._vocabulary(mask_token)
  ids = {symbol: i for i, symbol in enumerate(vocabulary.symbols)}
  shown = {byte: symbol for symbol, byte in vocabulary.bytes.items()}
  if clip.ftfy is not None:
    text = clip.ftfy.fix_text(text)
  text = html.unescape(html.unescape(text)).strip()
  text = regex.sub(r'\s+', ' ', text).strip().lower()
  special = ['<|startoftext|>', '<|endoftext|>'] + ['<|mask|>'] * mask_token
  pattern = '|'.join(
    [regex.escape(token) for token in special]
    + ["'s|'t|'re|'ve|'m|'ll|'d", r'\p{L}+', r'\p{N}', r'[^\s\p{L}\p{N}]+']
  )
  result = []
  for piece in regex.findall(pattern, text, regex.IGNORECASE):
    if piece in special:
      result.append(ids[piece])
      continue
    symbols = [shown[byte] for byte in piece.encode()]
    symbols[-1] += '</w>'
    while True:
      # Merged symbols are numbered in the order of their merges.
      pairs = [
        (ids[a + b], i)
        for i, (a, b) in enumerate(itertools.pairwise(symbols))
        if 512 <= ids.get(a + b, -1) < 49405 + (not mask_token)
      ]
      if not pairs:
        break
      _, i = min(pairs)
      symbols[i : i + 2] = [symbols[i] + symbols[i + 1]]
    result += [ids[symbol] for symbol in symbols]
  return result


pieces = st.one_of(
  st.text(max_size=6),
  st.sampled_from(
    [
      "'ll",
      '<|endoftext|>',
      '!!<|mask|>',
      '&amp;lt;',
      ' the ',
      '2024',
      'ﬁ',
      'ß',
    ]
    + ['jekyll', 'walking', '\x1c', '\x85', 'İ', '\u00ad', 'Ã©', '😀']
  ),
)


@settings(deadline=None, max_examples=200)
@given(st.lists(pieces, max_size=8).map(''.join), st.booleans())
@example('<b> &amp;lt; </b>', False)  # entities within entities
@example("it'\u017f a", True)  # a long s is an s without case
def test_ids_are_those_of_a_naive_tokenizer(text, mask_token):
  tokenizer = masked if mask_token else plain
  assert tokenizer.encode(text) == naive_encode(text, mask_token)


@pytest.mark.parametrize(
  ('caption', 'ids'),
  [  # openai/CLIP's
    ('a photo of a cat.', [320, 1125, 539, 320, 2368, 269]),
    ('', []),
    ('   ', []),
    ('JEKYLL', [49405]),
  ],
)
def test_known_ids(caption, ids):
  assert plain.encode(caption) == ids


def test_ends_and_padding():
  ids = plain('a cat', 8)
  assert ids.dtype == np.int32
  assert ids.tolist() == [START, 320, 2368, END, 0, 0, 0, 0]


@pytest.mark.parametrize('length', [2, 3, 5, 12])
def test_truncation_keeps_the_first_ids_and_ends_with_end(length):
  caption = 'a b c d e f g h i j k l m n o p'
  whole = [START, *plain.encode(caption)]
  assert plain(caption, length).tolist() == [*whole[: length - 1], END]


def test_too_long_without_truncation_is_an_error():
  assert plain('a cat', 4, truncate=False).tolist() == [START, 320, 2368, END]
  with pytest.raises(UserError, match='4 ids does not fit in 3'):
    plain('a cat', 3, truncate=False)


def test_no_room_for_both_ends_is_an_error():
  with pytest.raises(ValueError, match='no room'):
    plain('a cat', 1)


def test_mask_token_replaces_the_last_word_of_the_vocabulary():
  assert masked.encode('a <|mask|> cat') == [320, MASK, 2368]
  assert MASK not in masked.encode('jekyll')
  assert masked.decode(masked.encode('jekyll')) == 'jekyll '
  assert MASK not in plain.encode('a <|mask|> cat')
  assert plain.vocab_size == masked.vocab_size == END + 1


def test_special_tokens_are_found_only_where_a_piece_begins():
  assert plain.encode('cat<|endoftext|>')[-1] == END
  assert END not in plain.encode('!<|endoftext|>')


@settings(deadline=None, max_examples=50)
@given(st.text(max_size=20))
def test_decode_gives_the_words_back(text):
  words = clip._vocabulary(False).pattern.findall(clip.clean(text))
  expected = ''.join(
    word + ' ' for word in words if word not in clip._vocabulary(False).special
  )
  if '<|' not in text:
    assert plain.decode(plain(text, 200)) == expected


def test_decode_of_half_a_character_does_not_raise():
  first, *_ = plain.encode('漢')
  assert '\ufffd' in plain.decode([first])
  with pytest.raises(ValueError, match='49408'):
    plain.decode([49408])


def test_pickle_is_small_and_works_in_a_fresh_process():
  packed = pickle.dumps(masked)
  assert len(packed) < 200
  code = (
    'import pickle, sys; tokenizer = pickle.loads(bytes.fromhex(sys.argv[1]));'
    "print(tokenizer('a <|mask|>', 6).tolist())"
  )
  shown = subprocess.run(
    [sys.executable, '-c', code, packed.hex()],
    capture_output=True,
    text=True,
    check=True,
  ).stdout
  assert shown.strip() == str([START, 320, MASK, END, 0, 0])


def test_threads_agree():
  captions = [f'person {i} in a coat of {i * 7} colours' for i in range(200)]
  with concurrent.futures.ThreadPoolExecutor(8) as pool:
    threaded = list(pool.map(ClipTokenizer().encode, captions))
  assert threaded == [plain.encode(caption) for caption in captions]


def test_without_ftfy_well_formed_text_has_the_same_ids(monkeypatch):
  caption = "It's a woman's 2nd coat &amp; <b>hat</b>, naïve  日本語\n"
  expected = plain.encode(caption)
  monkeypatch.setattr(clip, 'ftfy', None)
  assert plain.encode(caption) == expected


def test_ftfy_mends_mojibake():
  pytest.importorskip('ftfy')
  assert plain.encode('schÃ¶n “quotes”') == plain.encode('schön "quotes"')
