"""Packages `configs/` as `jaxzoo.configs`; all else is in pyproject.toml."""

from setuptools import find_packages, setup

setup(
  packages=[*find_packages(include=['jaxzoo', 'jaxzoo.*']), 'jaxzoo.configs'],
  package_dir={'jaxzoo.configs': 'configs'},
)
