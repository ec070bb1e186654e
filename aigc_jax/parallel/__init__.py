"""Where arrays live: mesh and processes."""
