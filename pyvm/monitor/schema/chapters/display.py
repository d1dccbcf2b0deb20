"""Displays, and pictures of what they show."""

TEXT = """
enum ImageFormat
  ppm png

command screendump
  filename: str
  device?: str
  head?: int
  format?: ImageFormat

enum DisplayType
  default none gtk sdl egl-headless curses spice-app dbus

enum DisplayGLMode
  off on core es

struct DisplayGTK
  grab-on-hover?: bool
  zoom-to-fit?: bool
  show-tabs?: bool
  show-menubar?: bool

struct DisplayCurses
  charset?: str

struct DisplayEGLHeadless
  rendernode?: str

struct DisplayDBus
  rendernode?: str
  addr?: str
  p2p?: bool
  audiodev?: str

enum HotKeyMod
  lctrl-lalt lshift-lctrl-lalt rctrl

struct DisplaySDL
  grab-mod?: HotKeyMod

union DisplayOptions by type
  type: DisplayType
  full-screen?: bool
  window-close?: bool
  show-cursor?: bool
  gl?: DisplayGLMode
  case gtk: DisplayGTK
  case curses: DisplayCurses
  case egl-headless: DisplayEGLHeadless
  case dbus: DisplayDBus
  case sdl: DisplaySDL

command query-display-options -> DisplayOptions
"""
