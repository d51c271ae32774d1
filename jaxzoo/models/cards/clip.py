"""OpenAI's CLIP: two towers, no classifier."""

from jaxzoo.models.cards.card import ModelCard


def _clip(name, variant, size, parameters, digest, zero_shot):
  file = variant.replace('/', '-').replace('@', '-')
  return ModelCard(
    name=f'clip_{name}',
    family='clip',
    builder='jaxzoo.models.backbones.clip:build',
    variant=variant,
    paper='arXiv 2103.00020',
    image_size=(size, size),
    num_classes=0,
    text_length=77,
    mean=(0.48145466, 0.4578275, 0.40821073),
    std=(0.26862954, 0.26130258, 0.27577711),
    interpolation='bicubic',
    crop=1.0,
    parameters=parameters,
    license='MIT',
    # The folder is the file's SHA-256.
    weights='https://openaipublic.azureedge.net/clip/models/'
    f'{digest}/{file}.pt',
    results={'ImageNet zero-shot top-1': zero_shot},
  )


CARDS = (
  _clip(
    'rn50',
    'RN50',
    224,
    102007137,
    'afeb0e10f9e5a86da6080e35cf09123aca3b358a0c3e3b6c78a7b63bc04b6762',
    59.6,
  ),
  _clip(
    'rn101',
    'RN101',
    224,
    119688033,
    '8fa8567bab74a42d41c5915025a8e4538c3bdbe8804a470a72f30b0d94fab599',
    62.2,
  ),
  _clip(
    'rn50x4',
    'RN50x4',
    288,
    178300601,
    '7e526bd135e493cef0776de27d5f42653e6b4c8bf9e0f653bb11773263205fdd',
    65.8,
  ),
  _clip(
    'rn50x16',
    'RN50x16',
    384,
    290979217,
    '52378b407f34354e150460fe41077663dd5b39c54cd0bfd2b27167a4a06ec9aa',
    70.5,
  ),
  _clip(
    'rn50x64',
    'RN50x64',
    448,
    623258305,
    'be1cfb55d75a9666199fb2206c106743da0f6468c9d327f3e0d0a543a9919d9c',
    73.6,
  ),
  _clip(
    'vit_b32',
    'ViT-B/32',
    224,
    151277313,
    '40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af',
    63.2,
  ),
  _clip(
    'vit_b16',
    'ViT-B/16',
    224,
    149620737,
    '5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f',
    68.6,
  ),
  _clip(
    'vit_l14',
    'ViT-L/14',
    224,
    427616513,
    'b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836',
    75.3,
  ),
  _clip(
    'vit_l14_336',
    'ViT-L/14@336px',
    336,
    427944193,
    '3035c92b350959924f9f00213499208652fc7ea050643e8b385c2dac08641f02',
    76.2,
  ),
)
