"""Networks trained on labelled images, as complete systems."""
