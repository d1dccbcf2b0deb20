"""Command handlers, one module for each chapter of the schema, imported when one of its commands is first used."""
