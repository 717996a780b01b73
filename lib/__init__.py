"""Text-prompted abdominal organ segmentation: two papers, reproduced step by step.

MONAI is imported by the functions that use it: it takes eight seconds, which those who read scans, tables or figures need not wait.
"""
