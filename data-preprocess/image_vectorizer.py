"""One vector an image, of one model or of several put together: for search and for classifiers.

python data-preprocess/image_vectorizer.py --image_path FILE_OR_DIR --models A[,B…] [flags]
"""

from featprep.cli import main_vectorize

# Decoding workers are spawned and import this file again: without the guard each would start a run.
if __name__ == "__main__":
    raise SystemExit(main_vectorize())
