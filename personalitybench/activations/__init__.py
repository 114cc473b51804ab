"""What neurons and steering vectors need: where activations lie, statistics, neuron sets, interventions."""
