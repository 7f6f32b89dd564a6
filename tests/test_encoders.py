"""Every encoder of the catalogue against its contract, its upstream modules and the known traps.

Checkpoints are random, in each family's published format, at two layers; two are whole.
"""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import open_clip_towers
import pytest
import torch
from featprep import certify
from featprep.certify import Case
from featprep.encoders import describe, find_weights, list_encoders, load_encoder, resolve
from featprep.encoders.base import (
    Encoder,
    EncoderSpec,
    LoadOptions,
    ModelName,
    Want,
    check_pos_embed,
)
from featprep.encoders.hf_known import KNOWN
from featprep.encoders.openai_clip import import_clip
from featprep.encoders.openclip_cards import KNOWN as OPEN_CLIP
from featprep.encoders.tiny import (
    TINY,
    write_checkpoint,
    write_openclip,
    write_random,
    write_tiny,
)
from featprep.encoders.torch_encoder import full_float32
from featprep.errors import OutOfMemoryError, UsageError, WeightsError
from featprep.references.base import normalised

PROJECTED = Want(feature="projected")
# A few at their published width. test_huggingface and test_openai_clip_resnet have all of them
# small; `featprep certify --all` has them whole.
HF = (
    "facebook/dinov2-small",
    "facebook/dinov3-vits16plus-pretrain-lvd1689m",
    "facebook/dinov3-convnext-tiny-pretrain-lvd1689m",
    "openai/clip-vit-base-patch32",
    "google/siglip-base-patch16-224",
    "tiny",
)
CLIP = ("ViT-B/32", "ViT-L/14@336px", "RN50", "tiny")
OTHERS = [name for name in list_encoders() if name.startswith(("clip:", "hf:"))]
# Of open_clip's many, every kind of tower there is, made small.
TOWERS = [name for name in open_clip_towers.TOWERS if name != "openclip:small/relpos"]
ARCHITECTURES = [
    *(f"clip:{id}" for id in CLIP),
    *(f"hf:{id}" for id in HF),
    "openclip:tiny",
    *TOWERS,
    "timm:tiny",  # timm's and torchvision's architectures: test_module_encoders
]
CLIP_NAMES = "ViT-B/32, ViT-B/16, ViT-L/14 … tiny (all 10: featprep models clip:)"
HF_NAMES = (
    "facebook/dinov2-small, facebook/dinov2-base, facebook/dinov2-large … tiny "
    f"(all {len(KNOWN) + 1}: featprep models hf:)"
)
OPEN_CLIP_NAMES = (
    f"RN50/openai, RN50/yfcc15m, RN50/cc12m … tiny (all {len(OPEN_CLIP) + 1}: featprep models "
    "openclip:)"
)
ANY_NAME = (
    "FAMILY:NAME or FAMILY:NAME=PATH, FAMILY one of clip, hf, openclip, timm, torchvision (all "
    f"{len(list_encoders())} names: featprep models)"
)
CLIP_ALLOWED = f"{CLIP_NAMES}, or clip:NAME=PATH, PATH a .pt file"
OPEN_CLIP_ALLOWED = (
    f"{OPEN_CLIP_NAMES}, openclip:hf-hub:ORG/NAME of the hub, or openclip:NAME=PATH, PATH a "
    "checkpoint, or a folder with open_clip_config.json; NAME is ARCH/TAG or ARCH"
)
Load = Callable[..., Any]


def named(path: Path, family: str) -> ModelName:
    return ModelName(family, "test", str(path))


@pytest.fixture(scope="module", params=ARCHITECTURES)
def checkpoint(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, ModelName]:
    """(catalogue name, two blocks of it as local weights), for every encoder there is."""
    folder = tmp_path_factory.mktemp("checkpoint")
    family, _, id = request.param.partition(":")
    if request.param in TOWERS:
        path = write_openclip(open_clip_towers.TOWERS[request.param], folder)
    elif id == "tiny":
        path = write_tiny(family, folder)
    else:
        path = write_random(request.param, folder, 2)
    return request.param, ModelName(family, id if request.param in TOWERS else "test", str(path))


@pytest.fixture(scope="module")
def encoder(checkpoint: tuple[str, ModelName]) -> Encoder:
    return load_encoder(checkpoint[1], LoadOptions())


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Load:
    """load("clip", compute=…): a family's tiny checkpoint as a local one."""
    folders = {family: tmp_path_factory.mktemp(family) for family in TINY}
    paths = {family: write_tiny(family, folder) for family, folder in folders.items()}
    return lambda family, **options: load_encoder(
        named(paths[family], family), LoadOptions(**options)
    )


def images(count: int, height: int = 42, width: int = 70) -> np.ndarray[Any, Any]:
    return certify.generate_images(count, height, width)


# --- names


def test_the_catalogue_is_what_the_tables_say() -> None:
    ids = "ViT-B/32 ViT-B/16 ViT-L/14 ViT-L/14@336px RN50 RN101 RN50x4 RN50x16 RN50x64 tiny"
    clip = [f"clip:{id}" for id in ids.split()]
    assert [*clip, *(f"hf:{id}" for id in (*KNOWN, "tiny"))] == OTHERS


@pytest.mark.parametrize("name", list_encoders())
def test_every_name_resolves_to_itself_and_is_described_alike_from_its_weights(name: str) -> None:
    spec = describe(resolve(name, "any"))
    assert spec is not None
    assert (spec.name, str(resolve(name, "any"))) == (name, name)
    assert resolve(name, "any") == resolve(name, name.partition(":")[0])


def test_what_is_described_is_what_the_weights_hold(
    checkpoint: tuple[str, ModelName], encoder: Encoder
) -> None:
    name, local = checkpoint
    if name in TOWERS:
        assert describe(local) in (encoder.spec, None)  # None: a trunk that is in no table
        return
    spec = describe(resolve(name, "any"))
    assert spec is not None
    depth = spec.depth if name.endswith("tiny") or spec.stages or "convnext" in name else 2
    own = dataclasses.replace(spec, name=str(local), depth=depth, meaningless=False)
    assert encoder.spec == own


def test_the_dimensions_are_the_published_ones() -> None:
    rows = {
        name: (spec.hidden_dim, spec.depth, spec.patch, spec.native_size[0], spec.projected_dim)
        for name in OTHERS
        if (spec := describe(resolve(name, "any"))) and not spec.meaningless
        if name.startswith("clip:") or "dinov2" in name  # the others: test_huggingface
    }
    assert rows == {
        "clip:ViT-B/32": (768, 12, 32, 224, 512),
        "clip:ViT-B/16": (768, 12, 16, 224, 512),
        "clip:ViT-L/14": (1024, 24, 14, 224, 768),
        "clip:ViT-L/14@336px": (1024, 24, 14, 336, 768),
        "clip:RN50": (2048, 4, 32, 224, 1024),
        "clip:RN101": (2048, 4, 32, 224, 512),
        "clip:RN50x4": (2560, 4, 32, 288, 640),
        "clip:RN50x16": (3072, 4, 32, 384, 768),
        "clip:RN50x64": (4096, 4, 32, 448, 1024),
        "hf:facebook/dinov2-small": (384, 12, 14, 518, None),
        "hf:facebook/dinov2-base": (768, 12, 14, 518, None),
        "hf:facebook/dinov2-large": (1024, 24, 14, 518, None),
        "hf:facebook/dinov2-giant": (1536, 40, 14, 518, None),
        "hf:facebook/dinov2-with-registers-small": (384, 12, 14, 518, None),
        "hf:facebook/dinov2-with-registers-base": (768, 12, 14, 518, None),
        "hf:facebook/dinov2-with-registers-large": (1024, 24, 14, 518, None),
        "hf:facebook/dinov2-with-registers-giant": (1536, 40, 14, 518, None),
    }


def test_a_name_with_its_family_a_path_and_a_bare_name_are_told_apart(tmp_path: Path) -> None:
    file = tmp_path / "cat.pt"
    file.touch()
    assert resolve("ViT-L/14", "clip") == ModelName("clip", "ViT-L/14", None, is_plain=True)
    assert resolve("clip:ViT-L/14", "clip") == ModelName("clip", "ViT-L/14")
    assert resolve(f"clip:mine={file}", "any") == ModelName("clip", "mine", str(file))
    assert resolve(str(file), "clip") == ModelName("clip", "cat.pt", str(file), is_plain=True)
    assert resolve("hf:someone/their-dinov2", "hf") == ModelName("hf", "someone/their-dinov2")
    assert resolve("facebook/dinov2-base", "any").family == "hf"


@pytest.mark.parametrize(
    ("value", "family", "message"),
    [
        (
            "RN5",
            "clip",
            f"--model RN5: no such encoder; allowed is {CLIP_ALLOWED}; {OPEN_CLIP_ALLOWED}. "
            "Did you mean RN50?",
        ),
        (
            "clip:vit-l14",
            "any",
            f"--model clip:vit-l14: no such encoder; allowed is {CLIP_NAMES}, or clip:NAME=PATH, "
            "PATH a .pt file. Did you mean clip:ViT-L/14?",
        ),
        (
            "facebook/dinov2-bse",
            "hf",
            f"--model facebook/dinov2-bse: no such encoder; allowed is {HF_NAMES}, hf:ORG/NAME "
            "of the hub, or hf:NAME=PATH, PATH a folder with config.json. Did you mean "
            "hf:facebook/dinov2-base?",
        ),
        (
            "clip:ViT-B/32",
            "hf",
            f"--model clip:ViT-B/32: this command takes hf: encoders; allowed is {HF_NAMES}, "
            "hf:ORG/NAME of the hub, or hf:NAME=PATH, PATH a folder with config.json; for this "
            "one use encode_with_clip.py or featprep encode --model clip:ViT-B/32",
        ),
        (
            "vit-b/32",
            "any",
            f"--model vit-b/32: no such encoder; allowed is {ANY_NAME}. Did you mean "
            "clip:ViT-B/32?",
        ),
        (
            "/nowhere/at/all",
            "any",
            f"--model /nowhere/at/all: no such file or folder; allowed is {ANY_NAME}.",
        ),
        (
            "/nowhere/at/all",
            "clip",
            "--model /nowhere/at/all: no such file or folder; allowed is "
            f"{CLIP_ALLOWED}; {OPEN_CLIP_ALLOWED}.",
        ),
        (
            "tiny",
            "any",
            "--model tiny: of which family? type --model hf:tiny; allowed is clip:tiny, hf:tiny, "
            "openclip:tiny, timm:tiny",
        ),
        (
            "hf:tinny",
            "any",
            f"--model hf:tinny: no such encoder; allowed is {HF_NAMES}, hf:ORG/NAME of the hub, or "
            "hf:NAME=PATH, PATH a folder with config.json. Did you mean hf:tiny?",
        ),
        ("zebra", "any", f"--model zebra: no such encoder; allowed is {ANY_NAME}."),
        (
            "dinov2-base",
            "any",
            f"--model dinov2-base: no such encoder; allowed is {ANY_NAME}. Did you mean "
            "hf:facebook/dinov2-base?",
        ),
        (
            "openclip:vit-h-14",
            "any",
            "--model openclip:vit-h-14: of which weights? allowed is "
            "openclip:ViT-H-14/laion2b_s32b_b79k, openclip:ViT-H-14/metaclip_fullcc, "
            "openclip:ViT-H-14/metaclip_altogether, openclip:ViT-H-14/dfn5b",
        ),
        (
            ".",
            "any",
            "--model .: a path needs its family and a name; allowed is FAMILY:NAME=PATH, such as "
            "hf:mine=., FAMILY one of clip, hf, openclip, timm, torchvision",
        ),
        (
            "clip:x=/nowhere/at/all",
            "any",
            "--model clip:x=/nowhere/at/all: no such path; allowed is clip:NAME=PATH, PATH a .pt "
            "file",
        ),
        (
            "hf:org/na me",
            "any",
            f"--model hf:org/na me: no such encoder; allowed is {HF_NAMES}, hf:ORG/NAME of the "
            "hub, or hf:NAME=PATH, PATH a folder with config.json.",
        ),
    ],
)
def test_an_unknown_name_is_refused_with_what_there_is_and_the_nearest(
    value: str, family: str, message: str
) -> None:
    with pytest.raises(UsageError) as refusal:
        resolve(value, family)
    assert str(refusal.value) == message


def test_a_misspelt_name_of_the_hub_that_cannot_be_had_says_which_was_meant() -> None:
    for load in (find_weights, lambda name: load_encoder(name, LoadOptions())):
        with pytest.raises(WeightsError) as refusal:
            load(resolve("hf:facebook/dinov2-bas", "any"))
        assert str(refusal.value).endswith("writes it). Did you mean hf:facebook/dinov2-base?")
    for value in ("hf:someone/their-dinov2", "hf:facebook/dinov2-base"):
        with pytest.raises(WeightsError) as refusal:
            find_weights(resolve(value, "any"))
        assert str(refusal.value).endswith("writes it)")


def test_a_gated_name_that_cannot_be_had_offline_says_where_its_terms_are() -> None:
    name = "hf:facebook/dinov3-vitb16-pretrain-lvd1689m"
    for load in (find_weights, lambda name: load_encoder(name, LoadOptions())):
        with pytest.raises(WeightsError) as refusal:
            load(resolve(name, "any"))
        assert str(refusal.value).endswith(
            f"(featprep fetch {name} --to DIR, where there is a network, writes it). It is gated: "
            "first accept its terms at https://huggingface.co/"
            "facebook/dinov3-vitb16-pretrain-lvd1689m"
        )


def test_describing_loads_no_torch(tmp_path: Path) -> None:
    folder = write_tiny("hf", tmp_path / "local")
    snapshot = tmp_path / "hub/models--org--model/snapshots/abc"
    snapshot.mkdir(parents=True)
    for file in folder.iterdir():
        (snapshot / file.name).symlink_to(file)
    refs = snapshot.parents[1] / "refs"
    refs.mkdir()
    (refs / "main").write_text("abc")
    program = (
        "import sys\n"
        "from featprep.encoders import describe, list_encoders, resolve\n"
        "names = [*list_encoders(), f'hf:x={sys.argv[1]}', 'hf:org/model', 'hf:org/absent']\n"
        "print([getattr(describe(resolve(n, 'any')), 'hidden_dim', None) for n in names[-3:]])\n"
        "all(describe(resolve(name, 'any')) for name in names)\n"
        "heavy = {'torch', 'torchvision', 'timm', 'transformers', 'clip', 'cv2'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
    )
    environment = {**os.environ, "HF_HUB_CACHE": str(tmp_path / "hub")}
    done = subprocess.run(
        [sys.executable, "-c", program, str(folder)],
        env=environment | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "[64, 64, None]\n[]\n"


# --- parity with upstream


def test_maps_equal_upstreams_at_native_other_and_non_square_sizes(
    checkpoint: tuple[str, ModelName], encoder: Encoder
) -> None:
    p, native = encoder.spec.patch, encoder.spec.native_size
    sizes = [(*native, 1), (5 * p, 5 * p, 1), (3 * p, 5 * p, 7)]
    features: list[Any] = ["patch", "projected"] if encoder.spec.projected_dim else ["patch"]
    cases = [Case(*size, Want(feature=feature)) for size in sizes for feature in features]
    for verdict in certify.certify(checkpoint[1], cases):
        assert verdict.is_within, verdict
        assert verdict.difference.cosine > 1 - 1e-7


@pytest.mark.parametrize("name", ["clip:ViT-B/32", "hf:facebook/dinov2-small"])
def test_a_whole_encoder_equals_upstreams(name: str, tmp_path: Path) -> None:
    local = named(write_random(name, tmp_path), name.partition(":")[0])
    cases = [Case(224, 224, 1), Case(96, 224, 7)]
    if name.startswith("hf"):
        cases = [Case(224, 224, 1), Case(70, 112, 7)]
    for verdict in certify.certify(local, cases):
        assert verdict.is_within, verdict


# --- the contract


def test_grid_tokens_and_shapes_with_h_unlike_w(encoder: Encoder) -> None:
    p, spec = encoder.spec.patch, encoder.spec
    assert encoder.grid(2 * p, 5 * p) == (2, 5)
    if not (
        spec.name.endswith("resnet") or spec.stages
    ):  # whose first convolution is padded: a cell more
        assert encoder.grid(2 * p + 3, 5 * p + p - 1) == (2, 5)
    prefix = spec.cls + spec.registers
    assert encoder.tokens(2 * p, 5 * p) == (prefix + 10, spec.hidden_dim)
    maps = encoder.encode(images(2, 2 * p, 5 * p), Want())
    assert list(maps.maps) == [spec.depth - 1]
    assert maps.map.shape == (2, spec.hidden_dim, 2, 5)
    assert maps.map.dtype == np.float32
    assert maps.map.flags.c_contiguous
    assert (maps.prefix, maps.pooled) == (None, None)


def test_a_row_depends_on_its_image_alone(encoder: Encoder) -> None:
    p = encoder.spec.patch
    pixels = images(7, 3 * p, 4 * p)
    alone = np.zeros_like(pixels)
    alone[0] = pixels[0]
    together, padded = (encoder.encode(batch, Want()).map for batch in (pixels, alone))
    # Equal bits: a short batch is padded, so a map depends on neither neighbours nor cut.
    assert np.array_equal(together[0], padded[0])
    turned = encoder.encode(pixels[::-1].copy(), Want()).map
    np.testing.assert_allclose(turned[::-1], together, rtol=0, atol=1e-4)
    single = encoder.encode(pixels[:1], Want()).map
    np.testing.assert_allclose(single[0], together[0], rtol=0, atol=1e-4)


def test_bfloat16_points_the_same_way_as_float32(
    checkpoint: tuple[str, ModelName], encoder: Encoder
) -> None:
    p = encoder.spec.patch
    half = load_encoder(checkpoint[1], LoadOptions(compute="bfloat16"))
    pixels = images(2, 4 * p, 3 * p)
    ours, exact = (one.encode(pixels, Want()).map.ravel() for one in (half, encoder))
    assert ours @ exact / np.linalg.norm(ours) / np.linalg.norm(exact) >= 0.999
    assert half.digest == encoder.digest


@pytest.mark.parametrize("family", list(TINY))
@pytest.mark.parametrize("compute", ["float32", "bfloat16", "float16"])
def test_storage_is_what_is_wanted_whatever_the_compute(
    load: Load, family: str, compute: str
) -> None:
    encoder = load(family, compute=compute)
    for dtype in ("float32", "float16"):
        maps = encoder.encode(images(1), Want(dtype=dtype)).map
        assert maps.dtype == np.dtype(dtype)
        assert np.isfinite(maps).all()


@pytest.mark.parametrize("family", list(TINY))
def test_a_bright_cell_shows_at_its_own_row_and_column(load: Load, family: str) -> None:
    """PITFALLS 22: rows and columns swapped would go unnoticed on squares."""
    encoder = load(family)
    dark = np.zeros((1, 3, 42, 70), np.uint8)
    lit = dark.copy()
    lit[:, :, 14:28, 56:70] = 255
    change = np.abs(encoder.encode(lit, Want()).map - encoder.encode(dark, Want()).map).sum(1)[0]
    assert np.unravel_index(change.argmax(), change.shape) == (1, 4)


@pytest.mark.parametrize("family", list(TINY))
def test_what_an_encoder_lacks_is_refused_with_what_there_is(load: Load, family: str) -> None:
    encoder = load(family)
    with pytest.raises(UsageError) as refusal:
        encoder.encode(images(1), Want(layers=(3,)))
    unit = " has 3 blocks; allowed are 0 to 2, or -1 (the last) to -3"
    if not encoder.spec.has_layers:
        unit = ": allowed is -1 (or 2), the last block"
    assert str(refusal.value).endswith(unit.removeprefix(":"))
    np.testing.assert_array_equal(
        encoder.encode(images(1), Want(layers=(2,))).map, encoder.encode(images(1), Want()).map
    )
    with pytest.raises(UsageError) as refusal:
        encoder.grid(13, 70)
    assert str(refusal.value) == (
        f"--size 13,70: smaller than a patch of {family}:test; allowed are multiples of 14"
    )


def test_projection_is_refused_where_there_is_none(load: Load) -> None:
    message = "--feature projected: hf:test has no projection; allowed is --feature patch"
    with pytest.raises(UsageError) as refusal:
        load("hf", want=PROJECTED)
    assert str(refusal.value) == message
    with pytest.raises(UsageError) as refusal:
        load("hf").encode(images(1), PROJECTED)
    assert str(refusal.value) == message


# --- pixels, precision, memory


@pytest.mark.parametrize("family", list(TINY))
def test_normalisation_is_to_tensor_and_normalize_bit_for_bit(load: Load, family: str) -> None:
    encoder = load(family)
    every = np.arange(256, dtype=np.uint8).reshape(1, 1, 16, 16).repeat(3, axis=1)
    expected = normalised(every, encoder.spec.mean, encoder.spec.std)
    assert torch.equal(encoder.normalise(every), expected)
    every.setflags(write=False)  # as a view of shared memory may be
    assert torch.equal(encoder.normalise(every), expected)
    assert encoder.normalise(every).dtype == torch.float32


@pytest.mark.skipif(
    not hasattr(torch.backends.cudnn, "conv"), reason="torch before 2.9 has other switches"
)
def test_float32_is_float32_whatever_the_process_has_chosen(load: Load) -> None:
    encoder, pixels = load("clip"), images(2, 140, 140)
    exact = encoder.encode(pixels, Want()).map
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        assert np.array_equal(encoder.encode(pixels, Want()).map, exact)
        assert torch.backends.mkldnn.matmul.fp32_precision == "bf16"  # type: ignore[attr-defined]
    finally:
        torch.set_float32_matmul_precision(before)
    with full_float32():
        switches = (torch.backends.cuda.matmul, torch.backends.cudnn.conv)  # type: ignore[attr-defined]
        assert [switch.fp32_precision for switch in switches] == ["ieee", "ieee"]
    assert torch.backends.cudnn.conv.fp32_precision != "ieee"  # type: ignore[attr-defined]


def test_a_thread_that_ends_takes_no_precision_from_one_that_goes_on() -> None:
    conv = torch.backends.cudnn.conv  # type: ignore[attr-defined]
    before = conv.fp32_precision
    first, second = full_float32(), full_float32()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert conv.fp32_precision == "ieee" != before
    second.__exit__(None, None, None)
    assert conv.fp32_precision == before


@pytest.mark.parametrize("family", list(TINY))
def test_what_overflows_float16_comes_back_as_inf_and_never_clipped(
    load: Load, family: str
) -> None:
    """PITFALLS 24."""
    encoder = load(family)
    last = {
        "hf": lambda: encoder.model.layernorm,
        "clip": lambda: encoder.visual.transformer.resblocks[-1].mlp.c_proj,
        "openclip": lambda: encoder.visual.transformer.resblocks[-1].mlp.c_proj,
        "timm": lambda: encoder.network.model.norm,
    }[family]()
    last.weight.data *= 1e6
    exact = encoder.encode(images(1), Want()).map
    half = encoder.encode(images(1), Want(dtype="float16")).map
    assert np.isfinite(exact).all()
    assert np.array_equal(np.isinf(half), np.abs(exact) >= 65520)
    assert np.isinf(half).any()


@pytest.mark.parametrize("family", list(TINY))
@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`"),
        MemoryError(),
    ],
)
def test_out_of_memory_is_ours_and_holds_on_to_nothing(
    load: Load, family: str, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = load(family)

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(encoder, "_take", fail)
    with pytest.raises(OutOfMemoryError) as caught:
        encoder.encode(images(2), Want())
    assert str(caught.value) == "cpu has no room for a batch of 2"
    assert caught.value.__context__ is None  # else its traceback would keep the batch alive


def test_other_errors_of_the_library_are_not_taken_for_it(
    load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = load("clip")

    def fail(*_: object) -> None:
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(encoder, "_take", fail)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        encoder.encode(images(1), Want())


# --- the right layer


def test_dinov2_gives_the_last_block_after_the_final_norm(load: Load) -> None:
    """PITFALLS 1, 2 and 3: neither the first block nor hidden_states[-1], which lacks the norm."""
    encoder, pixels = load("hf"), images(1)
    with torch.inference_mode():
        out = encoder.model(encoder.normalise(pixels), output_hidden_states=True)
        normed = encoder.model.layernorm(out.hidden_states[-1])
    ours = torch.from_numpy(encoder.encode(pixels, Want()).map[0]).flatten(1).T
    torch.testing.assert_close(ours, normed[0, 1:], rtol=0, atol=1e-5)
    for other in (out.hidden_states[-1], out.hidden_states[1]):
        assert (ours - other[0, 1:]).abs().mean() > 0.1


def test_clip_gives_the_last_block_before_the_norm(load: Load) -> None:
    """PITFALLS 1 and 3."""
    encoder, pixels = load("clip"), images(1)
    kept: list[Any] = []
    for block in encoder.visual.transformer.resblocks:
        block.register_forward_hook(lambda *call: kept.append(call[-1][1:, 0]))
    ours = torch.from_numpy(encoder.encode(pixels, Want()).map[0]).flatten(1).T
    first, _, last = kept
    assert torch.equal(ours, last)
    for other in (first, encoder.visual.ln_post(last)):
        assert (ours - other).abs().mean() > 0.1


def test_projected_is_the_norm_and_the_projection_of_each_patch(load: Load) -> None:
    encoder, pixels = load("clip"), images(2)
    cells = torch.from_numpy(encoder.encode(pixels, Want()).map).flatten(2).mT
    projected = encoder.encode(pixels, PROJECTED).map
    with torch.inference_mode():
        expected = encoder.visual.ln_post(cells) @ encoder.visual.proj
    assert projected.shape == (2, 32, 3, 5)
    assert torch.equal(torch.from_numpy(projected).flatten(2).mT, expected)


def test_registers_are_no_part_of_the_map(tmp_path: Path) -> None:
    """PITFALLS 6: with a fixed offset of one, four registers would shift every cell."""
    spec = dataclasses.replace(TINY["hf"], registers=4)
    encoder: Any = load_encoder(named(write_checkpoint(spec, tmp_path), "hf"), LoadOptions())
    assert encoder.tokens(42, 70) == (1 + 4 + 15, 64)
    pixels = images(1)
    with torch.inference_mode():
        tokens = encoder.model(encoder.normalise(pixels)).last_hidden_state[0]
    ours = torch.from_numpy(encoder.encode(pixels, Want()).map[0]).flatten(1).T
    assert torch.equal(ours, tokens[5:])


def test_clip_runs_quick_gelu(load: Load) -> None:
    """PITFALLS 12: with the usual GELU the map is another one."""
    encoder, pixels = load("clip"), images(1)
    ours = encoder.encode(pixels, Want()).map
    x = torch.linspace(-4, 4, 9)
    for block in encoder.visual.transformer.resblocks:
        assert torch.equal(block.mlp.gelu(x), x * torch.sigmoid(1.702 * x))
        block.mlp.gelu = torch.nn.GELU()
    assert np.abs(encoder.encode(pixels, Want()).map - ours).max() > 1e-2


def test_clip_is_float32_on_every_device_unless_asked(load: Load) -> None:
    """PITFALLS 13: clip.load gives float16 on CUDA. Nothing here asks for the device."""
    assert {item.dtype for item in load("clip").visual.parameters()} == {torch.float32}
    half = load("clip", compute="float16").visual
    assert half.conv1.weight.dtype == half.proj.dtype == torch.float16
    assert half.transformer.resblocks[0].attn.in_proj_weight.dtype == torch.float16
    assert half.ln_pre.weight.dtype == half.positional_embedding.dtype == torch.float32


@pytest.mark.filterwarnings("ignore:`torch.jit.load`")  # clip.load tries it first
def test_a_float32_clip_checkpoint_is_never_rounded(tmp_path: Path) -> None:
    """PITFALLS 26: clip.load takes it through float16."""
    path = write_tiny("clip", tmp_path)
    tensors = {key: item * 1.0001 for key, item in torch.load(path, weights_only=True).items()}
    torch.save(tensors, path)
    encoder: Any = load_encoder(named(path, "clip"), LoadOptions())
    for key, item in encoder.visual.state_dict().items():
        assert torch.equal(item, tensors[f"visual.{key}"]), key
    rounded = import_clip().load(str(path), device="cpu")[0].visual.conv1.weight
    assert not torch.equal(rounded, tensors["visual.conv1.weight"])


# --- position embeddings


def bicubic(source: np.ndarray[Any, Any], size: int, scale: float) -> np.ndarray[Any, Any]:
    """Keys' cubic convolution with a = −0.75 along the first axis, written out from the formula."""
    a, out = -0.75, []
    for index in range(size):
        centre = (index + 0.5) / scale - 0.5
        base, total = int(np.floor(centre)), 0.0
        for tap in range(base - 1, base + 3):
            d = abs(centre - tap)
            near = (a + 2) * d**3 - (a + 3) * d**2 + 1
            weight = near if d <= 1 else a * (d**3 - 5 * d**2 + 8 * d - 4)
            total = total + weight * source[min(max(tap, 0), len(source) - 1)]
        out.append(total)
    return np.asarray(out)


def hub_positions(encoder: Any, height: int, width: int, offset: float) -> np.ndarray[Any, Any]:
    """facebookresearch/dinov2's interpolate_pos_encoding without registers, from its formula."""
    own = encoder.model.embeddings.position_embeddings[0].double().numpy()
    square = own[1:].reshape(37, 37, -1)
    rows, columns = height // 14, width // 14
    across = bicubic(square, rows, (rows + offset) / 37).swapaxes(0, 1)
    return np.concatenate(
        [own[:1], bicubic(across, columns, (columns + offset) / 37).swapaxes(0, 1).reshape(-1, 64)]
    )


def test_hub_positions_follow_the_published_formula(load: Load) -> None:
    """PITFALLS 4: without registers, torch.hub adds 0.1 cell; transformers does not."""
    for convention, offset in (("hub", 0.1), ("transformers", 0.0)):
        encoder = load("hf", pos_embed=convention)
        tokens = torch.empty(1, 1 + 16 * 9, 64)
        ours = encoder.model.embeddings.interpolate_pos_encoding(tokens, 224, 126)[0]
        expected = hub_positions(encoder, 224, 126, offset)
        np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-5)


def test_positions_are_interpolated_once_for_a_size_and_few_are_kept(
    load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder, sizes = load("hf"), list[object]()
    interpolate = torch.nn.functional.interpolate

    def counted(*args: Any, **options: Any) -> Any:
        sizes.append(options["size"])
        return interpolate(*args, **options)

    monkeypatch.setattr(torch.nn.functional, "interpolate", counted)
    first = encoder.encode(images(1, 84, 140), Want()).map
    assert np.array_equal(encoder.encode(images(1, 84, 140), Want()).map, first)
    assert len(sizes) == 1
    for rows in range(1, 9):
        encoder.encode(images(1, 14 * rows, 56), Want())
    assert np.array_equal(encoder.encode(images(1, 84, 140), Want()).map, first)  # made anew
    assert len(sizes) == 10


def test_the_conventions_differ_off_the_native_size_and_agree_on_it(load: Load) -> None:
    hub, plain = load("hf", pos_embed="hub"), load("hf")
    small, native = images(1, 140, 84), images(1, 518, 518)
    assert np.abs(hub.encode(small, Want()).map - plain.encode(small, Want()).map).max() > 1e-3
    assert np.array_equal(hub.encode(native, Want()).map, plain.encode(native, Want()).map)
    assert hub.digest == plain.digest


def test_with_registers_hub_and_transformers_agree(tmp_path: Path) -> None:
    spec = dataclasses.replace(TINY["hf"], registers=4)
    local = named(write_checkpoint(spec, tmp_path), "hf")
    hub, plain = (load_encoder(local, LoadOptions(pos_embed=c)) for c in ("hub", "transformers"))
    for height, width in ((84, 140), (518, 518)):
        pixels = images(1, height, width)
        assert np.array_equal(hub.encode(pixels, Want()).map, plain.encode(pixels, Want()).map)


def test_clip_refuses_hub_positions_off_its_native_size(load: Load) -> None:
    encoder = load("clip", pos_embed="hub")
    assert encoder.encode(images(1, 224, 224), Want()).map.shape == (1, 64, 16, 16)
    with pytest.raises(UsageError) as refusal:
        encoder.encode(images(1, 42, 70), Want())
    assert str(refusal.value) == (
        "--pos_embed hub at 42×70: clip:test has no such interpolation; allowed is transformers, "
        "or its own size, --size 224,224"
    )


def test_a_convention_that_a_spec_names_is_never_refused() -> None:
    spec: EncoderSpec = TINY["hf"]
    for convention in ("transformers", "hub"):
        check_pos_embed(spec, convention, 42, 70)


def test_clip_keeps_few_resampled_grids_and_its_own_positions_untouched(load: Load) -> None:
    encoder = load("clip")
    own = encoder.visual.positional_embedding.clone()
    for columns in range(1, 12):
        encoder.encode(images(1, 14, 14 * columns), Want())
    assert len(encoder._positions.grids) == 8
    assert torch.equal(encoder.visual.positional_embedding, own)
    assert encoder._positions.at((16, 16)) is encoder.visual.positional_embedding


# --- tiny


@pytest.mark.parametrize("family", list(TINY))
def test_tiny_is_the_same_bytes_every_time_and_says_that_it_means_nothing(
    family: str, tmp_path: Path
) -> None:
    first, second = (write_tiny(family, tmp_path / name) for name in ("a", "b"))
    for one in sorted([first] if first.is_file() else first.iterdir()):
        other = tmp_path / "b" / one.name
        assert one.read_bytes() == other.read_bytes()
    assert first.name == second.name or first.is_dir()
    encoder = load_encoder(resolve("tiny", family), LoadOptions())
    assert encoder.spec == describe(resolve(f"{family}:tiny", "any"))
    assert encoder.spec.meaningless
    assert encoder.origin == "made here"
    assert encoder.digest == load_encoder(named(first, family), LoadOptions()).digest


def test_an_unpublished_name_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as refusal:
        write_random("clip:RN5", tmp_path)
    assert str(refusal.value) == (
        "write_random clip:RN5: allowed are the published names, such as clip:ViT-B/32"
    )
