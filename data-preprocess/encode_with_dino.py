"""Encode a folder of images with DINOv2 or DINOv3: one dense feature map an image.

python data-preprocess/encode_with_dino.py --input IN --output OUT [flags]
"""

from featprep.cli import main_encode

# Decoding workers are spawned and import this file again: without the guard each would start a run.
if __name__ == "__main__":
    raise SystemExit(main_encode(family="dino"))
