"""Deterministic record and replay of a run, which pyvm does not have: the commands say so."""

TEXT = """
enum ReplayMode
  none record play

struct ReplayInfo
  mode: ReplayMode
  filename?: str
  icount: int

command query-replay -> ReplayInfo

command replay-break
  icount: int

command replay-delete-break

command replay-seek
  icount: int
"""
