"""Recipes a user can copy."""
