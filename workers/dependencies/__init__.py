"""Dependencies: feature-to-feature attribution through the model, and a feature's effect on the next token.

A *target* is a feature read at a hook point by that source's read-out. A *source feature* is written at an earlier hook
point. An *edge* is the mean contribution of a source feature to the target's pre-activation, over the target's
positions.
"""
