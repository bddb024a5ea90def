"""Sections of the report that show images: what blocks see, and nearest neighbours."""
