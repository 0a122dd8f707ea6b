"""The lab's clips, metrics and evidence (numpy and OpenCV; heavier packages only where named)."""
