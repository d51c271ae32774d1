"""Data sources, transforms and tokenizers."""
