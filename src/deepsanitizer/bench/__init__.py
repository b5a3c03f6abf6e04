"""Trojaned and clean models made to order, and what is measured on them. No lower rank imports it."""
