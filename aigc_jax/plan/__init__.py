"""What a run needs of devices that are not here: `aigc plan`."""
