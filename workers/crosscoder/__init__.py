"""Sparse crosscoders: one dictionary over many sources. Pure torch: no service, no Celery, no files.

Shapes are given with these letters: n positions, m latents, d width of one source, D width of all sources beside
each other, k latents active on average.
"""
