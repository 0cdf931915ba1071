"""Parts of benchmarks/real_images.py: data folders, pretrained backbones, settings, runs, record and page."""
