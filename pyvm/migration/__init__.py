"""Machines that are saved, and go on elsewhere: folders with their state and RAM; the settings of migrations."""
