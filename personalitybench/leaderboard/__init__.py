"""Rows become a board: schema, aggregation, checks, exports. Every figure is recomputed from answers and ratings."""
