"""Picture files, and how teacher and student draw."""
