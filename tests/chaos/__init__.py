"""`make chaos`: kills at random moments of whole chains."""
