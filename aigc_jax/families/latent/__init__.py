"""Objectives in the latent space of a frozen first stage."""
