"""Rows become a board: schema, aggregation, checks, exports."""
