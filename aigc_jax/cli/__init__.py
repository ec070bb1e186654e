"""The command line: flags and one function per command."""
