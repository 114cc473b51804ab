"""Training of adapters: examples as tokens, the loss of an answer, the loop, its checkpoints and its curve."""
