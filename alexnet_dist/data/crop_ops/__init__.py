"""What may happen to a crop beside its geometry: the plan draws it, and every engine carries it out."""
