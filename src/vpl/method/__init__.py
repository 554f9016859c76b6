"""The frozen half of Vision Prototype Learning: tensors to tensors. No file, no print, no choice of a device.

features ──seeds──> maps ──labels──> regions ──prototypes──> V ──seeds, refine, crf──> pseudo-masks
"""
