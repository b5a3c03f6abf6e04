"""Trojaned and clean models made to order, and what is measured on them. Nothing below this rank imports it."""
