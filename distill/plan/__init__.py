"""What a recipe costs, before anything starts."""
