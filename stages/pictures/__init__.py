"""Picture files, and sampling with teacher and student."""
