"""How systems are judged: their pictures, the measurements on them, and the resulting report."""
