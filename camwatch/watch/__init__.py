"""Snapshots of a panel, their history, and what is made of them; knows no trainer."""
