"""Neuron sets as people handle them: reports on what a fit found, and the paper's own files in and out."""
