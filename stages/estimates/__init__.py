"""What stages count of their work before it is done, from shapes alone. Imports no torch."""
