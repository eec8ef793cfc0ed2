"""Fast mode: a private copy of the model that computes the same with less, and how near its maps are to the exact."""
