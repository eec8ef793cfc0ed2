"""Maps beside their images in a browser: one HTML file for a data set, and results in notebooks."""
