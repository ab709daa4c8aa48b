"""The command line: `main` is the command `lakd`, and the other modules have its commands in groups."""
