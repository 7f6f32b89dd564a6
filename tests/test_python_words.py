"""Refusals of what is called with keywords: they name settings and values, and no flag."""

from __future__ import annotations

import featprep
import numpy as np
import pytest
from featprep.config import FIELDS
from featprep.errors import UsageError, WeightsError
from featprep.python_words import in_python

TASK = "image-feature-extraction"


@pytest.mark.parametrize(
    ("message", "read"),
    [
        (
            "--size 13x: allowed is one side, H,W in pixels, or native; for example --size 224 or "
            "--size 224,448",
            "size='13x': allowed is one side, H,W in pixels, or native; for example size=224 or "
            "size=(224, 448)",
        ),
        (
            "--resize keep takes each image's own size: drop --size, or use --resize crop, squash "
            "or pad",
            "resize='keep' takes each image's own size: drop size, or use resize='crop', squash or "
            "pad",
        ),
        (
            "--masked_pool with --mask none: there are no cells; drop one of them",
            "masked_pool with mask='none': there are no cells; drop one of them",
        ),
        (
            "--model hf:x: no such encoder; allowed is FAMILY:NAME. Did you mean clip:ViT-L/14?",
            "model='hf:x': no such encoder; allowed is FAMILY:NAME. Did you mean clip:ViT-L/14?",
        ),
        ("drop one, or --no_quiet", "drop one, or quiet=False"),
        (
            "hf:org/x: not there; give --model hf:org/x=FOLDER (featprep fetch hf:org/x --to DIR)",
            "hf:org/x: not there; give model='hf:org/x=FOLDER' (featprep fetch hf:org/x --to DIR)",
        ),
        ("--layer -1,5: of hf:tiny", "layer=(-1, 5): of hf:tiny"),
        ("--background #ff: allowed", "background='#ff': allowed"),
        ("no such thing - as this", "no such thing - as this"),
    ],
)
def test_a_message_of_the_command_line_is_said_in_pythons_words(message: str, read: str) -> None:
    assert in_python(message) == read


def test_what_encode_refuses_names_no_flag() -> None:
    with pytest.raises(UsageError) as caught:
        featprep.encode(np.zeros((8, 8), np.uint8), model="hf:tiny", size=225)
    assert str(caught.value) == (
        "size=225: hf:tiny takes multiples of its patch, 14, or native; for example size=224"
    )


def test_another_size_of_a_pipeline_says_what_goes_with_it() -> None:
    with pytest.raises(UsageError) as caught:
        featprep.pipeline(TASK, "hf:tiny", size=224)
    assert str(caught.value) == (
        "size=224: images go the checkpoint's own way, resize='native', which has a size; another "
        "one goes with resize='crop' (short side, then centre crop), 'squash' or 'pad'"
    )
    assert featprep.pipeline(TASK, "hf:tiny", size=28, resize="crop")(
        np.zeros((8, 8), np.uint8)
    ).shape == (1, 5, 64)


def test_weights_that_are_missing_are_told_without_flags() -> None:
    for call in (
        lambda: featprep.encode(np.zeros((8, 8), np.uint8), model="hf:org/name"),
        lambda: featprep.pipeline(TASK, "hf:org/name"),
    ):
        with pytest.raises(WeightsError) as caught:
            call()
        assert str(caught.value).endswith(
            "give model='hf:org/name=FOLDER' (featprep fetch hf:org/name --to DIR, where there is "
            "a network, writes it)"
        )


def test_every_setting_has_words_in_python() -> None:
    for name in FIELDS:
        assert in_python(f"drop --{name}, or not") == f"drop {name}, or not"
