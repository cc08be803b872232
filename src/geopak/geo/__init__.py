"""Geography: the region and its provinces, distances on the sphere, boundaries and geocells."""
