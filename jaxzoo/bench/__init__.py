"""Commands that measure throughput: of the training step, of the input.

    python -m jaxzoo.bench.train_step --config=configs/irra.py:cuhk_pedes
    python -m jaxzoo.bench.data --config=configs/cfam.py

Each prints a table and, with `--json FILE`, writes the numbers. No test asserts
a time.
"""
