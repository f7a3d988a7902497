"""The report page and the model card of an evaluation. No torch and no storage here."""
