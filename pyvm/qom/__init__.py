"""The object model as monitors see it: a tree of objects with typed properties, and the types that they have."""
