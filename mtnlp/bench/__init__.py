"""Judging a model: predictions on a split, scores by the metrics of each task, tables."""
