"""The embedded world: scenes of coloured shapes, the captions that describe them, and the training
of their teacher.
"""
