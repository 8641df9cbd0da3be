"""Where a file is measured: one module a kind of device."""
