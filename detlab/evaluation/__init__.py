"""Scoring: detections in, COCO numbers out."""
