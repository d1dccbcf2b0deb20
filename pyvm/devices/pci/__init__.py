"""PCI: configuration space, the bus, MSI-X, and the i440FX chip set."""
