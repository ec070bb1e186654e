"""What each family optimises and how it samples: one file each, one protocol (`base`)."""
