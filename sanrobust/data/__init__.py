"""Datasets, decoding, the geometric transform, exact views and ordered batches."""
