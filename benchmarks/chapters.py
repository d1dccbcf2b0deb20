"""All chapters, in the order in which they are run and shown."""

from __future__ import annotations

from benchmarks import (
    agent_chapter,
    boot_chapter,
    convert_chapter,
    disk_chapter,
    jobs_chapter,
    machine_chapter,
    migrate_chapter,
    monitor_chapter,
    network_chapter,
    restore_chapter,
)

CHAPTERS = (
    machine_chapter.CHAPTER,
    monitor_chapter.CHAPTER,
    disk_chapter.CHAPTER,
    convert_chapter.CHAPTER,
    boot_chapter.CHAPTER,
    agent_chapter.CHAPTER,
    network_chapter.CHAPTER,
    migrate_chapter.CHAPTER,
    restore_chapter.CHAPTER,
    jobs_chapter.CHAPTER,
)
METRICS = tuple(metric for chapter in CHAPTERS for metric in chapter.metrics)
