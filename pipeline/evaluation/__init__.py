"""Protocols under which the field reports restoration quality. Every result stands beside its input's value."""
