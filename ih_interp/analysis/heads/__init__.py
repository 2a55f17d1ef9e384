"""Scores of single heads, from attention patterns and from weights."""
