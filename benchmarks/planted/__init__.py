"""Worlds whose truth is known: what the tests of size specialisation say of them."""
