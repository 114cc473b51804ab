"""Training weights on answers: what a fit needs that learns by gradient."""
