"""The embedder against sentence-transformers on the same folder, and against itself in another order."""

from __future__ import annotations

import subprocess
import sys

import jax
import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Transformer
from sentence_transformers.sentence_transformer.modules import Pooling as TorchPooling

from jasper_jax.embedder import Embedder
from jasper_jax.encoders.registry import encoder_from_config, encoder_from_folder
from jasper_jax.encoders.row_programs import pooled_rows
from jasper_jax.encoders.tokenization import Tokenizer
from jasper_jax.encoders.weights import load_params
from jasper_jax.runtime.errors import UserError
from tests.encoders.stacks import split_layers
from tests.st_folders import (
    DIM,
    LONGEST,
    WORDS,
    linear,
    write_dense_folder,
    write_sentence_transformer,
    write_transformer,
)

pytestmark = pytest.mark.usefixtures("quick_programs")

PROMPTS = {"query": "represent this query for find : ", "passage": "passage : ", "odd": "the stone "}


def some_texts(number=40, seed=0):
    """Texts of 0 to 30 words; some longer than the models' 20 tokens."""
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, n)) for n in rng.integers(0, 31, number)]


def make_folder(family, tmp_path_factory):
    path = tmp_path_factory.mktemp("st") / family
    model = write_sentence_transformer(
        family,
        path,
        dense=[linear(DIM, 24, torch.nn.Tanh()), linear(24, 8, torch.nn.Identity(), bias=False, seed=1)],
        prompts=PROMPTS,
    )
    return path, model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """(folder, the same in sentence-transformers): two Dense steps, Normalize, prompts."""
    return make_folder("bert", tmp_path_factory)


@pytest.fixture(scope="module")
def embedder(folder):
    return Embedder.load(folder[0])


def near(ours, theirs):
    assert ours.dtype == np.float32
    assert ours.shape == theirs.shape
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
    assert np.ptp(theirs) > 0.1


@pytest.mark.parametrize("kind", [None, "query", "passage", "odd"])
def test_equals_sentence_transformers(folder, embedder, kind):
    texts = some_texts()
    near(embedder.encode(texts, kind), folder[1].encode(texts, prompt_name=kind))
    assert embedder.dims == [8]


def test_mpnet_equals_sentence_transformers(tmp_path_factory):
    path, model = make_folder("mpnet", tmp_path_factory)
    texts = some_texts()
    near(Embedder.load(path).encode(texts, "query"), model.encode(texts, prompt_name="query"))


def test_one_kind_per_text(embedder):
    texts = some_texts(9)
    kinds = ["query", "passage", None] * 3
    mixed = embedder.encode(texts, kinds)
    for kind in ("query", "passage", None):
        rows = [i for i, one in enumerate(kinds) if one == kind]
        np.testing.assert_allclose(mixed[rows], embedder.encode([texts[i] for i in rows], kind), atol=2e-6)
    with pytest.raises(UserError, match="2 kinds for 9 texts"):
        embedder.encode(texts, ["query", "passage"])


def test_one_text_is_a_vector_and_none_is_empty(folder, embedder):
    vector = embedder.encode("the cat", kind="query")
    near(vector, folder[1].encode("the cat", prompt_name="query"))
    assert embedder.encode([]).shape == (0, 8)
    assert embedder.pooled([]).shape == (0, DIM)
    assert embedder.pooled("the cat").shape == (DIM,)


def test_prepared_texts_are_encoded_later(embedder):
    texts, before = some_texts(), embedder.tokens
    encode = embedder.prepare(texts, "query")
    assert embedder.tokens == before
    np.testing.assert_array_equal(encode(), embedder.encode(texts, "query"))
    assert embedder.tokens > before
    with pytest.raises(UserError, match="dim is 7"):
        embedder.prepare(texts, "query", 7)


def test_pooled_is_what_comes_before_dense(folder, embedder):
    texts = some_texts(12)
    model = folder[1]
    features = model.preprocess(texts)
    with torch.inference_mode():
        expected = model[1](model[0](features))["sentence_embedding"].numpy()
    near(embedder.pooled(texts), expected)


def test_order_batches_and_neighbours_do_not_matter(embedder):
    texts = some_texts(50)
    vectors = embedder.encode(texts)
    order = np.random.default_rng(1).permutation(len(texts))
    np.testing.assert_allclose(embedder.encode([texts[i] for i in order]), vectors[order], atol=2e-6)
    np.testing.assert_allclose(embedder.encode(texts, batch_tokens=64), vectors, atol=2e-6)
    np.testing.assert_allclose(embedder.encode(texts[:3]), vectors[:3], atol=2e-6)
    np.testing.assert_array_equal(embedder.encode(texts), vectors)


def test_long_texts_are_cut_and_counted(embedder):
    before = embedder.truncated
    long = "cat " * 100
    vectors = embedder.encode([long, "cat " * 18, "cat " * 17, "cat"])  # 18 words and two special tokens are 20
    assert embedder.truncated - before == 1
    np.testing.assert_allclose(vectors[0], vectors[1], atol=2e-6)


def test_progress_is_shown_when_asked(embedder, capsys):
    embedder.encode(some_texts(5), show_progress=True)
    shown = capsys.readouterr()
    assert "5 of 5" in shown.err
    assert "texts/s" in shown.err
    embedder.encode(some_texts(5))
    shown = capsys.readouterr()
    assert shown.err == shown.out == ""


def test_parameters_are_arguments(embedder):
    """A compiled program holds no weights: its text is short, and other weights need no other program."""
    ids, lengths = np.ones((2, 8), np.int32), np.full((2, 1), 8, np.int32)
    rows = {"ids": ids, "lengths": lengths}
    text = pooled_rows.lower(embedder.encoder, embedder.pooling, embedder.params, rows).as_text()
    assert len(text) < 200_000
    embedder.encode("the cat")
    programs = pooled_rows._cache_size()
    other = Embedder(embedder.encoder, embedder.encoder.init(jax.random.key(5)), embedder.tokenizer, embedder.pooling)
    assert np.abs(other.pooled("the cat") - embedder.pooled("the cat")).max() > 0.01
    assert pooled_rows._cache_size() == programs


@pytest.mark.parametrize("family", ["bert", "mpnet"])
def test_a_plain_transformers_folder_is_mean_pooled(family, tmp_path):
    path = write_transformer(family, tmp_path / "plain")
    embedder = Embedder.load(path)
    assert embedder.dims == [DIM]
    assert embedder.max_length == LONGEST
    texts = some_texts(10)
    model = SentenceTransformer(modules=[Transformer(str(path)), TorchPooling(DIM, "mean")], device="cpu")
    near(embedder.encode(texts), model.encode(texts, normalize_embeddings=True))
    near(embedder.pooled(texts), model.encode(texts))


def test_prompt_left_out_of_the_pooling(tmp_path):
    """INSTRUCTOR's way: the prompt is read by the encoder, its tokens are not pooled."""
    model = write_sentence_transformer(
        "bert",
        tmp_path / "model",
        pooling=TorchPooling(DIM, ("mean", "weightedmean"), include_prompt=False),
        prompts=PROMPTS,
        default_prompt_name="passage",
    )
    embedder = Embedder.load(tmp_path / "model")
    assert embedder.dims == [2 * DIM]
    texts = some_texts(12)
    near(embedder.encode(texts, "query"), model.encode(texts, prompt_name="query"))
    near(embedder.encode(texts), model.encode(texts))  # the default prompt
    assert embedder.prompt(None) == PROMPTS["passage"]


def test_lower_case(tmp_path):
    """sentence-transformers lowers the text itself where sentence_bert_config.json says so."""
    model = write_sentence_transformer("bert", tmp_path / "model", lowercase=False, do_lower_case=True)
    cased = tmp_path / "model-source"
    settings = cased / "sentence_bert_config.json"
    settings.write_text('{"max_seq_length": 20, "do_lower_case": true}')
    lowered = Embedder.load(cased).encode(["The CAT", "the cat"])
    near(lowered, model.encode(["The CAT", "the cat"]))
    np.testing.assert_allclose(lowered[0], lowered[1], atol=1e-6)
    settings.write_text('{"max_seq_length": 20, "do_lower_case": false}')
    kept = Embedder.load(cased).encode(["The CAT", "the cat"])
    assert np.abs(kept[0] - kept[1]).max() > 0.01


def test_every_dimension_of_a_stella_folder(tmp_path):
    """``2_Dense_{dim}`` folders: the same vectors as sentence-transformers pointed at each."""
    path = tmp_path / "stella"
    write_sentence_transformer(
        "bert", path, normalize=False, prompts={"s2p_query": "query : ", "s2s_query": "find this : "}
    )
    for dim in (16, 4, 64):
        write_dense_folder(path / f"2_Dense_{dim}", DIM, dim, seed=dim)
    modules = (path / "modules.json").read_text().rstrip().rstrip("]").rstrip()
    step = '{"idx": 2, "name": "2", "path": "2_Dense_16", "type": "sentence_transformers.models.Dense"}'
    texts = some_texts(8)
    for dim in (4, 16, 64):
        (path / "modules.json").write_text(f"{modules}, {step.replace('Dense_16', f'Dense_{dim}')}]")
        embedder = Embedder.load(path)
        assert embedder.dims == [4, 16, 64]
        theirs = SentenceTransformer(str(path), device="cpu")
        expected = theirs.encode(texts, normalize_embeddings=True, prompt_name="s2p_query")
        near(embedder.encode(texts, "query"), expected)
    (path / "modules.json").write_text(f"{modules}, {step}]")
    again = Embedder.load(path)
    assert again.encode(texts).shape == (8, 16)
    near(again.encode(texts, "query", dim=64), expected)
    assert again.prompts["query"] == "", "sentence-transformers writes an empty one"
    assert again.prompt("query") == "query : "
    assert again.prompt("passage") == again.prompt(None) == ""
    assert again.prompt("s2s_query") == "find this : "
    with pytest.raises(UserError, match="dim is 5; this model has 4, 16, 64"):
        again.encode(texts, dim=5)


def test_unknown_kind(embedder):
    with pytest.raises(UserError, match="kind is 'querry'; this model has query, passage, "):
        embedder.encode(["a"], kind="querry")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision(folder, dtype):
    texts = some_texts(10)
    vectors = Embedder.load(folder[0], dtype=dtype).encode(texts)
    assert vectors.dtype == np.float32
    cosine = (vectors * folder[1].encode(texts)).sum(axis=1)
    assert 0.99 < cosine.min() < 0.9999999
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


def test_an_empty_name_is_no_folder_of_images(folder):
    assert Embedder.load(folder[0], image_root="").image_root is None


def test_unknown_dtype(folder):
    with pytest.raises(UserError, match="dtype is 'int8'; expected one of float32"):
        Embedder.load(folder[0], dtype="int8")


def test_from_memory(folder):
    """What the trainer does: parameters in two stacks, heads as arrays."""
    path, _ = folder
    encoder = encoder_from_folder(path)
    params = load_params(path, encoder)
    tokenizer = Tokenizer.load(path, pad_id=encoder.config.pad_id)
    rng = np.random.default_rng(0)
    kernel, bias = rng.normal(size=(DIM, 6)).astype(np.float32), rng.normal(size=6).astype(np.float32)
    outputs = {6: [(kernel, bias, "identity")], 3: [(kernel[:, :3], None, "tanh")]}
    embedder = Embedder(encoder, split_layers(params, 1), tokenizer, outputs=outputs, normalize=False, max_length=10)
    texts = some_texts(7)
    pooled = embedder.pooled(texts)
    np.testing.assert_allclose(embedder.encode(texts), pooled @ kernel + bias, atol=1e-4)
    np.testing.assert_allclose(embedder.encode(texts, dim=3), np.tanh(pooled @ kernel[:, :3]), atol=1e-5)
    assert embedder.max_length == 10
    cut = Embedder(encoder, params, tokenizer).pooled([" ".join(WORDS[:8])])
    np.testing.assert_allclose(embedder.pooled([" ".join(WORDS[:16])]), cut, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"outputs": {6: [(np.zeros((5, 6)), None, "identity")]}}, "takes 5 dimensions, 32 come in"),
        ({"outputs": {7: [(np.zeros((DIM, 6)), None, "identity")]}}, "output 7: its Dense steps give 6"),
        ({"outputs": {6: [(np.zeros((DIM, 6)), None, "mish")]}}, "activation 'mish'"),
        ({"default_dim": 5}, "default_dim is 5; outputs are 32"),
        ({"max_length": LONGEST + 1}, "max_length is 49; this .* encoder has positions for 48"),
        ({"max_length": 2}, "more than the 2 special tokens"),
    ],
)
def test_what_does_not_fit_together(embedder, change, message):
    with pytest.raises(UserError, match=message):
        Embedder(embedder.encoder, embedder.params, embedder.tokenizer, **change)


def test_a_tokenizer_of_another_model(embedder, tmp_path):
    config = {**embedder.encoder.hf_config, "vocab_size": 50}
    encoder = encoder_from_config(config)
    with pytest.raises(UserError, match=r"tokens, the encoder's embedding table 50 rows"):
        Embedder(encoder, encoder.init(jax.random.key(0)), embedder.tokenizer)


def test_a_stated_length_must_fit(folder, tmp_path):
    path = write_transformer("bert", tmp_path / "model")
    (path / "sentence_bert_config.json").write_text('{"max_seq_length": 512}')
    with pytest.raises(UserError, match=r"max_length is 512.*positions for 48"):
        Embedder.load(path)


def test_texts_must_be_strings(embedder):
    with pytest.raises(UserError, match=r"texts\[1\] is a int"):
        embedder.encode(["a", 3])


@pytest.mark.parametrize("make", [np.array, tuple, iter, lambda texts: (text for text in texts), lambda t: map(str, t)])
def test_any_sequence_of_texts(embedder, make):
    texts = ["the cat", "", "a dog of stone"]
    np.testing.assert_array_equal(embedder.encode(make(texts)), embedder.encode(texts))
    np.testing.assert_array_equal(embedder.encode(np.str_("the cat")), embedder.encode("the cat"))


@pytest.mark.parametrize(
    "texts", [None, 3, {"text": "the cat"}, {"the", "cat"}, np.array("the"), np.array([["the", "cat"]])]
)
def test_what_is_no_sequence_of_texts(embedder, texts):
    """A dict would otherwise give vectors of its keys, a set vectors in no order."""
    with pytest.raises(UserError, match="texts is a .*; expected a text, or a list"):
        embedder.encode(texts)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": 3}, "kind is 3; expected the name of a prompt"),
        ({"kind": [["query"], None]}, r"kind has \['query'\]; expected the name of a prompt or None for each text"),
        ({"dim": 8.0}, "dim is 8.0; this model has 8"),
        ({"batch_tokens": 0}, "batch_tokens is 0; expected a whole number of at least 1"),
        ({"batch_tokens": "64"}, "batch_tokens is '64'"),
    ],
)
def test_arguments_of_encode(embedder, arguments, message):
    with pytest.raises(UserError, match=message):
        embedder.encode(["the", "cat"], **arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_length": 0}, "max_length is 0; expected a whole number of at least 1"),
        ({"max_length": "20"}, "max_length is '20'"),
        ({"dim": 0}, "dim is 0"),
        ({"prompts": "find : "}, "prompts is 'find : '; expected a dict of names and texts"),
    ],
)
def test_arguments_of_load(folder, arguments, message):
    with pytest.raises(UserError, match=message):
        Embedder.load(folder[0], **arguments)


def test_pytorch_is_never_imported(folder):
    code = (
        "import sys; from jasper_jax.embedder import Embedder; "
        f"print(Embedder.load({str(folder[0])!r}).encode(['the cat']).shape); "
        "print([name for name in ('torch', 'transformers', 'tensorflow') if name in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert run.stdout.splitlines() == ["(1, 8)", "[]"]
    assert run.stderr == ""
