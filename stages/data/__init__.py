"""What training reads: latents and preference pairs, by row."""
