"""From arguments to a problem, and what runs where."""
