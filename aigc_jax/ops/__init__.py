"""Primitives with one meaning and the form that is fast; models call them and know no platform."""
