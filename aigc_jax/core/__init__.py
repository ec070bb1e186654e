"""Contracts that everything else is written against: objectives, metrics, state, configs."""
