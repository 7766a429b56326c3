"""Which layers keep attention."""
