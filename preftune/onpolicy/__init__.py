"""Training data from the model itself: answers sampled from it."""
