"""Datasets, a file a family; image sources, label splits, and what a training or a protocol is handed."""
