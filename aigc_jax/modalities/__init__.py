"""Modalities: one folder per kind of data with its spec, readers, data set, writer and metrics."""
