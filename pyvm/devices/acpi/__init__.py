"""The ACPI hardware: power management and hot-plugging."""
