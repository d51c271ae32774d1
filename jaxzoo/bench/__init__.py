"""Commands that measure time: of the training step, of the input, of pruning.

    python -m jaxzoo.bench.train_step --config=configs/irra.py:cuhk_pedes
    python -m jaxzoo.bench.data --config=configs/cfam.py
    python -m jaxzoo.bench.compress

Each prints a table and, with `--json FILE`, writes the numbers. No test asserts
a time.
"""
