"""What is checked against an own, slow, faithful reimplementation of the original algorithm."""
