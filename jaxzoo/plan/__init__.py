"""What a training step needs and how long it takes, told by the compiler."""
