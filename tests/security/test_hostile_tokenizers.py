"""A tokenizer.json that fills the memory, hangs or ends its process does so in another process, once."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from jasper_jax.encoders import tokenizer_file
from jasper_jax.encoders.tokenization import Tokenizer
from jasper_jax.runtime.errors import UserError

REPLACE = {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 10}


def split(pattern: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def write(folder: Path, **parts: Any) -> Path:
    """A model folder's tokenizer with these parts."""
    folder.mkdir(exist_ok=True)
    model = {"type": "WordLevel", "vocab": {"[UNK]": 0, "a": 1, "b": 2}, "unk_token": "[UNK]"}
    tree = dict.fromkeys(("truncation", "padding", "normalizer", "post_processor", "decoder"))
    tree |= {"version": "1.0", "added_tokens": [], "pre_tokenizer": {"type": "Whitespace"}, "model": model}
    (folder / "tokenizer.json").write_text(json.dumps(tree | parts))
    return folder


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("JASPER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(tokenizer_file, "_VERDICTS", {})
    return tmp_path / "cache"


@pytest.fixture
def trials(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The exit code of every trial."""
    codes: list[int] = []
    run = subprocess.run

    def counted(*given: Any, **options: Any) -> Any:
        done = run(*given, **options)
        codes.append(done.returncode)
        return done

    monkeypatch.setattr(subprocess, "run", counted)
    return codes


TEMPLATE = {
    "type": "TemplateProcessing",
    "single": [{"Sequence": {"id": "A", "type_id": 0}}] * 150,
    "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
    "special_tokens": {},
}


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"normalizer": {"type": "Sequence", "normalizers": [REPLACE] * 9}}, "may make 1,000 characters of one"),
        ({"normalizer": REPLACE | {"pattern": {"Regex": "a*?"}, "content": "b" * 500}}, "may make 500 characters"),
        ({"pre_tokenizer": split("(a|a)*$|(a|aa)+b")}, "retry-limit-in-match over"),
        ({"pre_tokenizer": {"type": "Sequence", "pretokenizers": [split("(x+x+)+y")]}}, "retry-limit-in-match over"),
        ({"post_processor": TEMPLATE}, "tokens of"),
    ],
)
def test_what_harms_is_refused_in_a_line(tmp_path: Path, parts: dict[str, Any], message: str, own_cache: Path) -> None:
    folder = write(tmp_path / "model", **parts)
    for _ in range(2):
        with pytest.raises(UserError, match=rf"tokenizer\.json: .*{message}.*; use another tokenizer") as caught:
            Tokenizer.load(folder)
        assert "\n" not in str(caught.value)
        tokenizer_file._VERDICTS.clear()


def test_what_ends_its_process_ends_the_trial(
    tmp_path: Path, trials: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nine replacements, with the sum that is made before the trial left out: memory is allocated to the limit."""
    from jasper_jax.encoders import tokenizer_trial

    monkeypatch.setattr(tokenizer_file, "_growth", lambda _: None)
    script = tmp_path / "low.py"
    script.write_text(
        "from jasper_jax.encoders import tokenizer_trial as t\nt.MEMORY, t.SECONDS = 600 << 20, 20\n"
        "t.trial_texts = lambda _: ['a' * 100]\nt.main()\n"
    )
    run = subprocess.run
    monkeypatch.setattr(subprocess, "run", lambda command, **rest: run([command[0], str(script)], **rest))
    monkeypatch.setenv("PYTHONPATH", str(Path(tokenizer_trial.__file__).parents[2]))
    folder = write(tmp_path / "model", normalizer={"type": "Sequence", "normalizers": [REPLACE] * 9})
    with pytest.raises(UserError, match="ends the process, or takes more than 60 s or 8 GiB"):
        Tokenizer.load(folder)


def test_a_verdict_is_kept_by_the_file_s_sha256(tmp_path: Path, trials: list[int], own_cache: Path) -> None:
    folder = write(tmp_path / "model", pre_tokenizer=split(r"\p{L}+|\p{N}{1,3}|\s+(?!\S)|\s+|[^\s\p{L}\p{N}]+"))
    assert [len(ids) for ids in Tokenizer.load(folder).encode(["a b", "a"])] == [3, 1]
    assert trials == [0]
    Tokenizer.load(folder)
    tokenizer_file._VERDICTS.clear()  # another process
    Tokenizer.load(write(tmp_path / "copy", pre_tokenizer=split(r"\p{L}+|\p{N}{1,3}|\s+(?!\S)|\s+|[^\s\p{L}\p{N}]+")))
    assert trials == [0]
    [memo] = (own_cache / "tokenizers").iterdir()
    memo.write_text("damaged")
    tokenizer_file._VERDICTS.clear()
    Tokenizer.load(folder)
    Tokenizer.load(write(tmp_path / "other", pre_tokenizer=split(r"\p{L}+")))
    assert trials == [0, 0, 0]


def test_a_cache_that_others_may_write_keeps_no_verdicts(tmp_path: Path, own_cache: Path) -> None:
    own_cache.mkdir()
    own_cache.chmod(0o777)
    with pytest.raises(UserError, match="other users may write it"):
        Tokenizer.load(write(tmp_path / "model", pre_tokenizer=split("a")))


def test_without_a_cache_it_is_tried_every_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trials: list) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("JASPER_CACHE", str(tmp_path / "file" / "cache"))
    for _ in range(2):
        Tokenizer.load(write(tmp_path / "model", pre_tokenizer=split("a")))
        tokenizer_file._VERDICTS.clear()
    assert trials == [0, 0]


def test_tokenizers_without_patterns_start_no_process(tmp_path: Path, trials: list[int]) -> None:
    steps = [{"type": "NFKC"}, {"type": "Prepend", "prepend": "x"}, {"type": "Lowercase"}]
    Tokenizer.load(write(tmp_path / "model", normalizer={"type": "Sequence", "normalizers": steps}))
    assert trials == []


@pytest.mark.parametrize("strategy", [{"Fixed": 2**40}, "BatchLongest"])
def test_padding_of_the_file_is_not_followed(tmp_path: Path, strategy: Any) -> None:
    padding = {"strategy": strategy, "direction": "Right", "pad_to_multiple_of": 2**40, "pad_id": 0, "pad_type_id": 0,
               "pad_token": "[PAD]"}  # fmt: skip
    config = {"eos_token": "b", "tokenizer_class": "PreTrainedTokenizerFast"}
    folder = write(tmp_path / "model", padding=padding)
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    assert [ids.tolist() for ids in Tokenizer.load(folder).encode(["a b"])] == [[1, 2]]


def test_a_panic_that_no_trial_saw_is_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    monkeypatch.setattr(tokenizer_file, "verdict", lambda _: None)
    tokenizer = Tokenizer.load(write(tmp_path / "model", pre_tokenizer=split("(a|a)*$|(a|aa)+b")))
    text = "a" * 40 + "c"
    for use in (lambda: tokenizer.encode([text]), lambda: tokenizer.lengths([text]),
                lambda: tokenizer.prompt_length(text)):  # fmt: skip
        with pytest.raises(UserError, match=r"tokenizer\.json: the tokenizers library failed with it \(Onig: Regex"):
            use()
    capfd.readouterr()


@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "huge"])
def test_only_regular_files_are_read(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "tokenizer.json"
    made = {
        "pipe": lambda: os.mkfifo(path),
        "device": lambda: path.symlink_to("/dev/zero"),
        "folder": path.mkdir,
        "huge": lambda: os.truncate(os.open(path, os.O_CREAT | os.O_WRONLY), tokenizer_file.LARGEST + 1),
    }
    made[kind]()
    with pytest.raises(UserError, match=r"tokenizer\.json: (cannot be read|no such file)"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize("number", [2**24, 2**30, 2**32 - 1])
def test_ids_far_beyond_the_vocabulary(tmp_path: Path, number: int) -> None:
    """The library makes a list of the ids without a token, 4 bytes each."""
    folder = write(
        tmp_path / "model", model={"type": "WordLevel", "vocab": {"[UNK]": 0, "a": number}, "unk_token": "[UNK]"}
    )
    with pytest.raises(UserError, match=rf"tokenizer\.json: has the token id {number}, at most 16777215 is read"):
        Tokenizer.load(folder)


@pytest.mark.parametrize("skipped", [b"1" * 5000, b'"\xff"'])
def test_what_the_library_skips_does_not_hide_the_rest(tmp_path: Path, skipped: bytes) -> None:
    """Python refuses to parse it, the library does not look at it: without a tree there would be no trial."""
    chain = {"type": "Sequence", "normalizers": [REPLACE] * 9}
    truncation = {"direction": "Right", "max_length": 8, "strategy": "LongestFirst", "stride": 0, "x": 12345}
    path = write(tmp_path / "model", normalizer=chain, truncation=truncation) / "tokenizer.json"
    path.write_bytes(path.read_bytes().replace(b"12345", skipped))
    with pytest.raises(UserError, match=r"tokenizer\.json: not a tokenizer file"):
        Tokenizer.load(path.parent)
