"""The drawn data set: images, tags and truth masks that cost nothing and that everybody has."""
