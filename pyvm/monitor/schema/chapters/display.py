"""Displays, and pictures of what they show."""

TEXT = """
enum ImageFormat
  ppm png

command screendump
  filename: str
  device?: str
  head?: int
  format?: ImageFormat
"""
