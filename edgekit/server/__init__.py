"""The local server: one model behind the APIs that programs already speak."""
