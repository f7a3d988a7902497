"""Latent Adversarial Diffusion Distillation (Sauer et al. 2024, arXiv 2403.12015) in pure torch.

Knows nothing about Ray, storage, the command line or any model family: a net is a `Backbone`, see
`backbone.py`.
"""
