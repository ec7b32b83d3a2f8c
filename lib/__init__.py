"""Angular-margin losses for image classification: heads, training, records, figures."""
