"""Plans runs on devices that are not attached: `aigc plan`."""
