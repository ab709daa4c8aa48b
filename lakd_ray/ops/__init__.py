"""What an experiment takes on its storage, and what of it can be deleted. No Ray: it may run while others train."""
