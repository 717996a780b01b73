"""What the notebooks share: data, models, training, scores."""
