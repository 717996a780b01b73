"""Text-prompted abdominal organ segmentation: two papers, reproduced step by step."""
