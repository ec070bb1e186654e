"""The shared train step and everything around it that knows no family."""
