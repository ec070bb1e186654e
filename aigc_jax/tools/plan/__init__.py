"""Plans runs on devices that are not here: `aigc plan`."""
