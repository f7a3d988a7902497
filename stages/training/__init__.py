"""What the two training loops share, and the loops."""
