"""Measures what a config costs on this machine: `aigc bench`."""
