"""Command line: its commands, options and completion."""
