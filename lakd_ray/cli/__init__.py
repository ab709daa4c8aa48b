"""The `lakd` command."""
