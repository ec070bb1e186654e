"""Images: readers, data sets, writers."""
