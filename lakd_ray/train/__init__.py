"""Training of one run. No module here uses Ray."""
