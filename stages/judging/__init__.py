"""How systems are judged: what they draw, what is measured on it, and what follows from that."""
