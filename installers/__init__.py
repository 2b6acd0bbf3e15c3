"""Desktop installers and OEM images (nothing here yet; see docs/architecture.md)."""
