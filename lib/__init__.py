"""Angular-margin losses for image classification: data, heads, networks, training, measures, pictures."""
