"""The worker side of featurewatch: reads activations, fits and extends crosscoders, measures and judges."""
