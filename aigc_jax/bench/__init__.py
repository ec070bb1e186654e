"""What a config costs on this machine: `aigc bench`."""
