"""The text of the schema, one module a chapter; the package above explains the notation."""
