"""The command line `lakd`, with its entry point in `main` and one module for each group of commands."""
