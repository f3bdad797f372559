//! sim-coco
