"""Properties that can be read off a field: the exact field of a data set, curvature, each frame's gamma."""
