"""How far judges agree on the same answers, and how to read one judge on the scale of another."""
