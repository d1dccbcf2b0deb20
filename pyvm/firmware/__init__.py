"""What firmware does before an operating system runs: boot protocols and the tables that describe the machine."""
