"""featprep index and search: what stands in a collection, what is found, what is refused; on Milvus
Lite, by tables that are made here and an encoder that can be computed by hand."""

from __future__ import annotations

import fcntl
import importlib
import json
import re
import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import DEEP, FakeEncoder, fake_session
from featprep import encoders
from featprep.cli import main
from featprep.commands import encode_run, vectorize_run
from featprep.differences import by_name
from featprep.records import AnyArray
from featprep.stores.milvus import Collection
from featprep.stores.vector_files import VectorBatch, VectorFile, write_table
from featprep.tasks import retrieval
from PIL import Image
from test_encode_run import InlinePool


@dataclass
class Bench:
    root: Path
    capsys: pytest.CaptureFixture[str]
    fakes: dict[str, FakeEncoder] = field(default_factory=dict)
    out: str = ""
    said: str = ""

    @property
    def db(self) -> str:
        return str(self.root / "v.db")

    def call(self, *words: str) -> int:
        code = main(words)
        self.out, self.said = self.capsys.readouterr()
        return code

    def vectorize(self, *flags: str, models: str = "clip:tiny", output: str = "v.npy") -> Path:
        path = self.root / output
        words = [f"--image_path={self.root / 'in'}", f"--models={models}", f"--output={path}"]
        assert self.call("vectorize", *words, *flags, "--quiet") == 0, self.said
        return path

    def index(self, table: Path | str, *flags: str) -> int:
        return self.call("index", str(table), f"--db={self.db}", *flags)

    def search(self, *flags: str) -> int:
        return self.call("search", f"--db={self.db}", *flags)

    def found(self, *flags: str) -> list[tuple[str, float]]:
        assert self.search(*flags, "--json") == 0, self.said
        return [(hit["key"], hit["score"]) for hit in json.loads(self.out)["results"]]

    def image(self, name: str, colour: tuple[int, int, int]) -> Path:
        path = self.root / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 40), colour).save(path)
        return path


@pytest.fixture
def bench(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Bench:
    """Three images, and clip:tiny and hf:tiny, whose vectors are their colour and twice that."""
    bench = Bench(tmp_path, capsys)
    bench.fakes = {
        "clip": FakeEncoder(spec=replace(DEEP, text=True)),
        "hf": FakeEncoder(spec=replace(DEEP, name="fake:other"), scale=2.0),
    }

    def open_session(config: Any, name: Any, **_: Any) -> Any:
        return fake_session(bench.fakes[name.family])(config, name)

    monkeypatch.setattr(vectorize_run, "open_session", open_session)
    monkeypatch.setattr(retrieval, "open_session", open_session)
    monkeypatch.setattr(vectorize_run, "DecodePool", InlinePool)
    bench.image("red.png", (200, 0, 0))
    bench.image("blue.png", (0, 0, 90))
    bench.image("sub/sum.png", (80, 0, 80))
    return bench


def table_of(path: Path, vectors: AnyArray, keys: Sequence[str], **about: Any) -> Path:
    """A table as image_vectorizer.py writes it, of a model that is not there."""
    made = {"models": ["none:such"], **about}
    facts = {
        "model": "none:such", "models": [{"model": "none:such", "dim": vectors.shape[1]}],
        "dim": vectors.shape[1], "normalize": "none", "fingerprint": made,
    }  # fmt: skip
    batch = VectorBatch(list(keys), [f"/photos/{key}.png" for key in keys], vectors)
    count, dim = vectors.shape
    write_table(str(path), count, dim, str(vectors.dtype), facts, lambda: iter([batch]))
    return path


# --- what is found


@pytest.mark.parametrize(
    ("count", "flags"), [(10_000, []), (2_000, ["--index=hnsw"])], ids=["flat", "hnsw"]
)
def test_of_ten_thousand_vectors_the_ten_nearest_are_those_of_a_brute_force_search(
    bench: Bench, count: int, flags: list[str]
) -> None:
    random = np.random.default_rng(0)
    vectors = random.standard_normal((count, 64)).astype(np.float32)
    queries = random.standard_normal((100, 64)).astype(np.float32)
    keys = [f"{i:05}" for i in range(len(vectors))]
    table = table_of(bench.root / "v.npy", vectors, keys)
    assert bench.index(table, *flags) == 0
    with Collection(bench.db) as collection:
        found = collection.search(queries, 10)
    units = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    cosines = queries @ units.T / np.linalg.norm(queries, axis=1, keepdims=True)
    nearest = np.argsort(-cosines, axis=1)[:, :10]
    hits = [
        len({hit.key for hit in one} & {keys[i] for i in row})
        for one, row in zip(found, nearest, strict=True)
    ]
    assert sum(hits) / 1000 >= 0.99
    first = found[0][0]
    assert first.score == pytest.approx(cosines[0].max(), abs=1e-5)
    assert first.path == f"/photos/{first.key}.png"


def test_an_image_finds_the_images_of_its_colour_nearest_first(bench: Bench) -> None:
    bench.index(bench.vectorize(output="v.parquet"))
    query = bench.image("../query.png", (10, 0, 0))
    assert bench.found(f"--image={query}") == [
        ("red", pytest.approx(1)), ("sub/sum", pytest.approx(0.5**0.5)), ("blue", pytest.approx(0)),
    ]  # fmt: skip
    assert bench.search(f"--image={query}", "--top=2") == 0
    folder = bench.root / "in"
    assert bench.out == (
        f" 1.0000  red  {folder}/red.png\n 0.7071  sub/sum  {folder}/sub/sum.png\n"
    )


def test_a_query_is_prepared_as_the_images_of_the_collection_were(bench: Bench) -> None:
    """Transparent: black in the one collection, blue in the other."""
    query = bench.root / "clear.png"
    Image.new("RGBA", (40, 40), (255, 0, 0, 128)).save(query)
    for output, flags, nearest in (
        ("black.npy", [], "red"),
        ("blue.npy", ["--background=#0000ff", "--resize=pad", "--size=32"], "sub/sum"),
    ):
        name = f"--collection={output.partition('.')[0]}"
        assert bench.index(bench.vectorize(*flags, output=output), name) == 0
        ((key, score),) = bench.found(name, f"--image={query}", "--top=1")
        assert (key, score) == (nearest, pytest.approx(1, abs=0.001))


def test_the_vectors_of_several_models_are_searched_by_all_of_them(bench: Bench) -> None:
    table = bench.vectorize("--normalize=each", models="clip:tiny,hf:tiny")
    assert bench.index(table) == 0
    assert bench.found(f"--image={bench.root}/in/red.png", "--top=1") == [("red", pytest.approx(1))]
    assert bench.search("--text=red") == 2
    assert bench.said.splitlines()[-1] == (
        "featprep: --text: the collection featprep holds vectors of 2 models together; a text is "
        "compared with those of one model of images and texts; use --image"
    )


@dataclass
class Tower:
    """A text tower whose vector is the colour that a text names."""

    name: str = "fake:deep"
    colours: tuple[tuple[str, tuple[int, ...]], ...] = (("red", (7, 0, 0)), ("blue", (0, 0, 3)))

    context: int = 2

    def encode_text(self, texts: Sequence[str]) -> AnyArray:
        return np.array([dict(self.colours)[text.split()[0]] for text in texts], np.float32)

    def too_long(self, texts: Sequence[str]) -> list[str]:
        return [text for text in texts if len(text.split()) > self.context]


def test_a_text_finds_the_images_that_it_names(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def load_text(name: Any, options: Any) -> Tower:
        asked.append(str(name))
        return Tower()

    monkeypatch.setattr(encoders, "load_text", load_text)
    bench.index(bench.vectorize())
    assert bench.found("--text=blue", "--top=1") == [("blue", pytest.approx(1))]
    assert bench.found("--text=red", "--top=1") == [("red", pytest.approx(1))]
    assert asked == ["clip:tiny"] * 2
    assert bench.found("--text=blue and red", "--top=1") == [("blue", pytest.approx(1))]
    assert bench.said == "note     the text is longer than 2 tokens: its end is left out\n"
    monkeypatch.setattr(Tower, "encode_text", lambda self, texts: np.ones((1, 5), np.float32))
    assert bench.search("--text=red") == 2
    assert bench.said.splitlines()[-1] == (
        "featprep: --text: fake:deep gives texts 5 values and the collection featprep holds 3: its "
        "vectors are not aligned with texts; use --image"
    )


@pytest.mark.filterwarnings("ignore:.*pkg_resources.*", "ignore:.*torch.jit.*")
def test_a_real_model_finds_a_text_by_the_cosine_of_its_two_towers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """clip:tiny, against clip's own encode_image and encode_text of the same weights; the vectors
    are those that encode --pooled has stored."""
    import clip
    import torch
    from featprep.encoders import tiny

    weights = tiny.write_tiny("clip", tmp_path / "weights")
    model, preprocess = clip.load(str(weights), device="cpu")
    (tmp_path / "in").mkdir()
    image = Image.fromarray(
        np.random.default_rng(0).integers(0, 256, (224, 224, 3), dtype=np.uint8)
    )
    image.save(tmp_path / "in" / "a.png")
    monkeypatch.setattr(encode_run, "DecodePool", InlinePool)
    name, out, db = f"clip:mine={weights}", tmp_path / "maps", f"--db={tmp_path}/v.db"
    words = [f"--input={tmp_path}/in", f"--output={out}", f"--model={name}", "--quiet"]
    assert main(["encode", *words]) == 0
    assert main(["index", str(out), db]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        f"featprep: {out}: its run took no pooled vectors; make some with image_vectorizer.py, or "
        "run encode with --pooled into another --output"
    )
    words[1] += "2"
    assert main(["encode", *words, "--pooled"]) == 0
    assert main(["index", f"{out}2", db]) == 0
    query = [f"--models={name}", "--json"]
    assert main(["search", db, "--text", "a cat", *query]) == 0
    (found,) = json.loads(capsys.readouterr().out)["results"]
    with torch.no_grad():
        vector = model.encode_image(preprocess(image)[None])
        cosine = torch.cosine_similarity(vector, model.encode_text(clip.tokenize("a cat")))
    assert found == {
        "key": "a", "path": f"{tmp_path}/in/a.png", "score": pytest.approx(float(cosine), abs=1e-5),
    }  # fmt: skip
    assert main(["search", db, "--image", f"{tmp_path}/in/a.png", *query]) == 0
    assert json.loads(capsys.readouterr().out)["results"][0]["score"] == pytest.approx(1, abs=1e-5)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """The address of a server that speaks Milvus over the network: Milvus Lite's own."""
    adapter: Any = importlib.import_module("milvus_lite.adapter.grpc.server")
    data = str(tmp_path / "served")
    running, database, port = adapter.start_server_in_thread(data_dir=data, host="127.0.0.1")
    yield f"http://127.0.0.1:{port}"
    running.stop(grace=0).wait()
    database.close()


def test_a_servers_address_works_as_a_folder_does(bench: Bench, server: str) -> None:
    table, db = str(bench.vectorize()), f"--db={server}"
    for _ in range(2):  # the second replaces
        assert bench.call("index", table, db) == 0
        assert bench.said.splitlines()[-2] == (
            f"done     3 vectors put in; 3 in the collection featprep of {server}"
        )
    assert bench.call("search", db, f"--image={bench.root}/in/blue.png", "--json") == 0
    hits = json.loads(bench.out)["results"]
    assert [hit["key"] for hit in hits] == ["blue", "sub/sum", "red"]
    assert [hit["score"] for hit in hits] == pytest.approx([1, 0.5**0.5, 0], abs=1e-6)
    assert hits[0]["path"] == f"{bench.root}/in/blue.png"
    other = str(bench.vectorize(models="hf:tiny", output="w.npy"))
    assert bench.call("index", other, db) == 2
    assert bench.said.splitlines()[-1] == (
        f"featprep: --db {server}, collection featprep, holds vectors of other settings: models "
        "clip:tiny there, hf:tiny asked. Nothing was touched: use another --collection, or another "
        "--db"
    )


# --- what stands in a collection


def test_putting_in_again_replaces_and_new_keys_are_added(bench: Bench) -> None:
    path, vectors = bench.root / "v.npy", np.eye(3, dtype=np.float32)
    table_of(path, vectors, ["a", "b", "c"])
    assert bench.index(path) == 0
    table_of(path, vectors[[1, 2]], ["a", "d"])
    assert bench.index(path) == 0
    assert bench.said.splitlines()[0] == (
        f"done     2 vectors put in; 4 in the collection featprep of {bench.db}"
    )
    with Collection(bench.db) as collection:
        found = {hit.key: round(hit.score) for hit in collection.search(vectors[[1]], 10)[0]}
    assert found == {"a": 1, "b": 1, "c": 0, "d": 0}


def test_a_vector_of_zeros_is_left_out_and_counted(bench: Bench) -> None:
    table_of(bench.root / "v.npy", np.array([[0, 0], [1, 0]], np.float16), ["black", "other"])
    assert bench.index(bench.root / "v.npy") == 0
    assert bench.said.splitlines()[0] == (
        "done     1 vector put in, 1 left out: zeros, which have no cosine; 1 in the collection "
        f"featprep of {bench.db}"
    )


def test_vectors_of_other_settings_are_refused_with_what_differs(bench: Bench) -> None:
    vectors = np.ones((1, 2), np.float32)
    assert bench.index(table_of(bench.root / "a.npy", vectors, ["a"], weights="1" * 64)) == 0
    table = table_of(bench.root / "b.npy", vectors, ["b"], weights="2" * 64, size=[32, 32])
    assert bench.index(table) == 2
    assert bench.said == (
        f"featprep: --db {bench.db}, collection featprep, holds vectors of other settings: weights "
        f"{'1' * 12} there, {'2' * 12} asked; size none there, [32, 32] asked. Nothing was "
        "touched: use another --collection, or another --db\n"
    )
    both = {"models": ["clip:tiny", "hf:tiny"], "clip:tiny weights": "1", "hf:tiny weights": "2"}
    alone = {"models": ["clip:tiny"], "clip:tiny weights": "3"}
    assert by_name(alone, both) == [
        "models clip:tiny there, clip:tiny, hf:tiny asked",
        "clip:tiny weights 3 there, 1 asked",
    ]
    assert bench.index(table, "--collection=other") == 0
    with Collection(bench.db) as collection:
        assert collection.count() == 1


def test_a_query_of_other_weights_is_refused(bench: Bench) -> None:
    bench.index(bench.vectorize())
    bench.fakes["clip"] = FakeEncoder(spec=DEEP, digest="e" * 64)
    assert bench.search(f"--image={bench.root}/in/red.png") == 2
    assert bench.said.splitlines()[-1] == (
        "featprep: the collection featprep holds vectors that this model does not make: clip:tiny "
        f"weights {'f' * 12} there, {'e' * 12} asked; name the same weights with --models "
        "FAMILY:ID=PATH, or index vectors of these"
    )
    assert bench.search("--image=x", "--models=hf:tiny") == 2
    assert bench.said.splitlines()[-1] == (
        "featprep: --models hf:tiny: the collection featprep holds vectors of clip:tiny; name "
        "these, in this order, or none"
    )


def test_a_collection_that_is_not_ours_is_left_alone(bench: Bench) -> None:
    with Collection(bench.db, "theirs") as collection:
        collection._client.create_collection("theirs", dimension=2)
    table = table_of(bench.root / "a.npy", np.ones((1, 2), np.float32), ["a"])
    assert bench.index(table, "--collection=theirs") == 2
    assert bench.said == (
        f"featprep: --db {bench.db}: the collection theirs in it is not featprep's; give another "
        "--collection\n"
    )


# --- refusals


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["index", "v.npy"],
         "--db is required: NAME.db, or a server's http://HOST:PORT; see featprep index --help"),
        (["index", "v.npy", "--db=photos"],
         "--db photos: allowed is NAME.db, which Milvus Lite keeps here, or a server's address; "
         "for example --db photos.db or --db http://localhost:19530"),
        (["index", "v.npy", "--db=a.db", "--collection=a-b"],
         "--collection a-b: allowed are letters, digits and _, no digit first; for example "
         "--collection featprep"),
        (["index", "v.npy", "--db=no/such/a.db"],
         "--db no/such/a.db: there is no folder {root}/no/such; make it first"),
        (["index", "v.npy", "--db=v.db"],
         "--db v.db: is a file, and Milvus Lite keeps a folder of that name; give another name"),
        (["index", "v.npy", "--db=http://me:secret@localhost:1"],
         "--db http://localhost:1: the server does not answer (Fail connecting to server on "
         "localhost:1, illegal connection params or server unavailable); check the address, and "
         "MILVUS_TOKEN where it wants a password"),
        (["index", "w.npy", "--db=a.db"], "w.npy: no such file; check the path"),
        (["index", "v.npy", "--db=a.db", "--index=hnws"],
         "--index hnws: allowed is flat or hnsw. Did you mean hnsw?"),
        (["search", "--db=a.db"], 'give either --text "…" or --image FILE'),
        (["search", "--db=a.db", "--text=a", "--image=b"],
         'give either --text "…" or --image FILE'),
        (["search", "--db=a.db", "--text= "], "--text is empty: say what is sought"),
        (["search", "--db=a.db", "--text=a", "--top=0"],
         "--top 0: allowed is a number from 1 to 16384; for example --top 5"),
        (["search", "--db=a.db", "--text=a"],
         "--db a.db: is not there; make it first: featprep index VECTORS --db a.db"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_refused_in_one_line(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, words: list[str], message: str
) -> None:
    monkeypatch.chdir(bench.root)
    table_of(bench.root / "v.npy", np.ones((1, 2), np.float32), ["a"])
    Path("v.db").write_text("mine")
    assert bench.call(*words) == 2
    assert bench.said == f"featprep: {message.format(root=bench.root)}\n"
    assert not Path("a.db").exists()


def test_a_collection_that_is_not_there_is_said_with_how_to_make_it(bench: Bench) -> None:
    assert bench.index(table_of(bench.root / "a.npy", np.ones((1, 2), np.float32), ["a"])) == 0
    assert bench.search("--text=a", "--collection=other") == 2
    assert bench.said == (
        f"featprep: --db {bench.db}: no collection other in it; make it first: featprep index "
        "VECTORS --db …\n"
    )


def test_a_folder_that_another_command_has_open_is_said_to_be(bench: Bench) -> None:
    table = table_of(bench.root / "a.npy", np.ones((1, 2), np.float32), ["a"])
    assert bench.index(table) == 0
    with (Path(bench.db) / "LOCK").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        assert bench.index(table) == 2
    assert bench.said == (
        f"featprep: --db {bench.db}: cannot be opened; if another command has it open, wait for "
        "it, else give another name\n"
    )
    assert bench.index(table) == 0


def test_an_image_that_cannot_be_read_is_named(bench: Bench) -> None:
    bench.index(bench.vectorize())
    (bench.root / "broken.png").write_bytes(b"no image")
    assert bench.search(f"--image={bench.root}/broken.png") == 3
    assert bench.said.splitlines()[-1].startswith(f"failed   {bench.root}/broken.png: decode: ")
    assert bench.search(f"--image={bench.root}/none.png") == 3
    assert bench.said.splitlines()[-1].startswith(f"failed   {bench.root}/none.png: read: ")


def test_local_weights_of_a_collection_are_asked_for_as_search_takes_them(bench: Bench) -> None:
    models = "hf:tiny", "clip:mine"
    table = table_of(bench.root / "a.npy", np.ones((1, 2), np.float32), ["a"])
    with Collection(bench.db) as collection:
        rows = [{"model": model} for model in models]
        about = {**VectorFile(str(table)).about, "models": rows}
        collection.create(about, "flat")
    assert bench.search("--text=a") == 2
    assert bench.said == (
        "featprep: the collection featprep holds vectors of clip:mine, local weights; name them: "
        "--models hf:tiny,clip:mine=PATH\n"
    )
    assert bench.search("--text=a", "--models=hf:tiny,clip:yours") == 2
    assert bench.said.startswith("featprep: --models clip:yours: no such encoder; ")


@pytest.mark.parametrize("library", ["pymilvus", "milvus_lite"])
def test_without_milvus_the_command_that_installs_it_is_said(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, library: str
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == library]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, library, None)
    table = table_of(bench.root / "a.npy", np.ones((1, 2), np.float32), ["a"])
    assert bench.index(table) == 2
    assert bench.said == (
        f"featprep: --db {bench.db}: needs {library}, which is not installed; type: pip install "
        "'pymilvus>=3.0' 'milvus-lite>=3.2' (or, in the project's folder, pip install "
        "'.[retrieval]')\n"
    )


def test_the_page_on_retrieval_says_what_is_true(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (Path(__file__).resolve().parent.parent / "docs" / "retrieval.md").read_text()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(vectorize_run, "DecodePool", InlinePool)
    Path("photos").mkdir()
    for i, name in enumerate(("cat.jpg", "dog.jpg")):
        Image.new("RGB", (300, 250), (90, 60 * i, 30)).save(Path("photos") / name)
    ran = 0
    blocks = re.findall(r"```bash\n(.*?)```", page, re.DOTALL)
    for line in "".join(blocks).splitlines():
        words = shlex.split(line.partition("  #")[0])
        assert words[0] in ("featprep", "pip"), line
        if "photos" in line and words[0] == "featprep":
            assert main(words[1:]) == 0, capsys.readouterr().err
            ran += 1
    assert ran == 4
    assert VectorFile("photos.parquet").count == 2
