"""The user's own labelled pictures as data sources: folders of files, and arrays.

A batch is (images, labels): images [B, height, width], or [B, channels, height, width] in colour,
float32 in [0, 1]; labels [B], int64.
"""
