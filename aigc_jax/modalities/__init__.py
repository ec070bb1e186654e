"""Everything that is true of a kind of data, whoever models it: one folder per modality."""
