"""Feature-to-feature attribution through the real model, and what a feature does to the next token. Pure torch.

Words: a *target* is a feature read at a hook point by that source's own read-out; a *source feature* is one written at
an earlier hook point; an *edge* is what a source feature gives to the target's pre-activation, on average over the
target's positions.
"""
