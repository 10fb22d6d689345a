"""Data preparation: raw recordings to windows. The command is dataset/prepare.py, one file per data set beside it."""
