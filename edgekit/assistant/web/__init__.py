"""The assistant's interface: static files that the host serves as they are (no build step)."""
