"""Encode a folder of images with OpenAI's CLIP: one dense feature map an image.

python data-preprocess/encode_with_clip.py --input IN --output OUT [--model ViT-L/14] [flags]
"""

from featprep.cli import main_encode

# Decoding workers are spawned and import this file again: without the guard each would start a run.
if __name__ == "__main__":
    raise SystemExit(main_encode(family="clip"))
