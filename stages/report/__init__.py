"""The page and the model card that show what an evaluation found. No torch and no storage here."""
