"""Datasets: opens DATA references as sources of images; formats, splits, subsets."""
