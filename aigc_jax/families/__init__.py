"""Objectives with their networks and samplers, one folder per family."""
