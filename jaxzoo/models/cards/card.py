"""What is told of a model, and what its builder returns."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class ModelCard(NamedTuple):
  """One published model.

  Attributes:
    name: what `create_model` takes.
    family: architecture, as in `list_models(family=...)`.
    builder: 'MODULE:FUNCTION' that makes it.
    variant: its name in the paper, and what the builder goes by.
    paper: arXiv number or venue.
    parameters: how many numbers are trained, with the published head.
    image_size: (height, width) that it was published with.
    num_classes: of the published head; 0 for a model without classifier.
    gmacs: billions of multiply-adds an image at that size (papers say FLOPs);
      0 where nobody has published them.
    text_length: ids of a text; 0 for a model of images alone.
    mean: of the pictures' three channels, for values in [0, 1].
    std: likewise.
    interpolation: of the resizing at test time.
    crop: image size over the shorter side that is resized to before the
      middle is cut out.
    license: of the published weights.
    weights: where they are published; '' where they are not.
    results: what the paper reports, in percent.
  """

  name: str
  family: str
  builder: str
  variant: str
  paper: str
  parameters: int
  image_size: tuple[int, int] = (224, 224)
  num_classes: int = 1000
  gmacs: float = 0.0
  text_length: int = 0
  mean: tuple[float, float, float] = IMAGENET_MEAN
  std: tuple[float, float, float] = IMAGENET_STD
  interpolation: str = 'bilinear'
  crop: float = 0.875
  license: str = ''
  weights: str = ''
  results: Mapping[str, float] = {}


class Built(NamedTuple):
  """What a builder returns.

  Attributes:
    module: the network.
    inputs: `jax.ShapeDtypeStruct`s that it is initialised with.
    convert: published state dict -> variables, as numpy arrays.
    export: variables -> published state dict; None where there is none.
    head: regex of the variables of the classifier, which start anew for other
      classes; '' where there is none.
  """

  module: Any
  inputs: tuple
  convert: Callable[[Mapping], dict]
  export: Callable[[Mapping], dict] | None = None
  head: str = ''
