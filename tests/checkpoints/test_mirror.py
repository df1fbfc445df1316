"""The mirror of a run folder: whole at every moment, one writer, and enough to continue from."""

from __future__ import annotations

import itertools
import json
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from jasper_jax.checkpoints.checkpoint import Checkpoints, Position
from jasper_jax.checkpoints.mirror import Mirror
from jasper_jax.run import Run
from jasper_jax.runtime.errors import UserError
from jasper_jax.runtime.remote import Store
from tests.checkpoints.mirrored import (
    END,
    FIRST,
    SECOND,
    URL,
    Cut,
    attached,
    checkpoints,
    cut_after,
    remove_checkpoint,
    whole,
    write_checkpoint,
)
from tests.tiny import recipe
from tests.training.runs import fill, parameters, run_training, train_stages

pytestmark = pytest.mark.usefixtures("quick_programs", "bucket")


def test_an_empty_folder_gets_what_the_mirror_has(run: Path, tmp_path: Path) -> None:
    attached(run).push()
    attached(tmp_path / "other")
    assert checkpoints(tmp_path / "other") == checkpoints(run)
    assert (tmp_path / "other" / "metrics.jsonl").read_text() == '{"step": 4}\n'


def test_the_mirror_follows_the_folder(run: Path, tmp_path: Path) -> None:
    mirror = attached(run)
    mirror.push()
    for name in (FIRST, SECOND):
        remove_checkpoint(run, name)
    write_checkpoint(run, END)
    mirror.push()
    attached(tmp_path / "other")
    assert whole(tmp_path / "other") == {"start", END}
    assert [n for n in mirror.store.names("checkpoints") if "step" in n] == []


def test_a_folder_that_is_further_keeps_what_it_has(run: Path, tmp_path: Path) -> None:
    attached(run).push()
    write_checkpoint(tmp_path / "other", END)
    (tmp_path / "other" / "metrics.jsonl").write_text("mine")
    attached(tmp_path / "other").push()
    assert whole(tmp_path / "other") == {END}
    assert (tmp_path / "other" / "metrics.jsonl").read_text() == "mine"
    assert whole_in_mirror(tmp_path) == {END}


def whole_in_mirror(tmp_path: Path) -> set[str]:
    empty = tmp_path / "empty"
    shutil.rmtree(empty, ignore_errors=True)
    attached(empty)
    return whole(empty)


def test_a_checkpoint_of_the_same_name_is_sent_anew(run: Path, tmp_path: Path) -> None:
    mirror = attached(run)
    mirror.push()
    remove_checkpoint(run, SECOND)
    write_checkpoint(run, SECOND, "written again")
    mirror.push()
    attached(tmp_path / "other")
    assert checkpoints(tmp_path / "other") == checkpoints(run)


def test_metrics_are_sent_up_to_their_last_whole_line(run: Path) -> None:
    """They are appended to while the thread that has sealed a checkpoint pushes."""
    mirror = attached(run)
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5}\n{"ste')
        file.flush()
        mirror.push()
        assert mirror.store.read("metrics.jsonl") == b'{"step": 4}\n{"step": 5}\n'
        file.write('p": 6}\n')
    mirror.push()
    assert mirror.store.read("metrics.jsonl") == (run / "metrics.jsonl").read_bytes()


def test_pushes_of_two_threads_do_not_mix(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mirror, send = attached(run), Store.write
    under_way: list[int] = []
    most: list[int] = []

    def slow(self: Store, name: str, data: bytes) -> None:
        under_way.append(threading.get_ident())
        most.append(len(set(under_way)))
        time.sleep(0.01)
        send(self, name, data)
        under_way.pop()

    monkeypatch.setattr(Store, "write", slow)
    with ThreadPoolExecutor(4) as threads:
        for pushed in [threads.submit(mirror.push) for _ in range(4)]:
            pushed.result()
    assert max(most) == 1
    assert whole_in_mirror(run.parent) == {"start", FIRST, SECOND}


def test_the_mirror_has_a_checkpoint_before_the_next_save_begins(run: Path, tmp_path: Path) -> None:
    mirror = attached(run)
    checkpoints = Checkpoints(run / "checkpoints", ["one"], 2, after=mirror.push)
    checkpoints.save_step(Position(0, 6), {"a": np.ones(3)}, {})
    deadline = time.monotonic() + 60
    while mirror.store.read("checkpoints/00-one/step-000006.sha256.json") is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    checkpoints.wait()
    assert whole_in_mirror(tmp_path) == {"start", SECOND, "00-one/step-000006"}
    objects = [mirror.store.read(name) or b"" for name in mirror.store.names("")]
    assert not [data for data in objects if str(tmp_path).encode() in data], "it does not say where the run folder is"


def test_cut_anywhere_the_mirror_holds_whole_checkpoints(run: Path, tmp_path: Path, bucket) -> None:
    """A stage ends: the final comes, the steps go. After every single operation a newcomer finds what it can use."""
    attached(run).push()
    before = {name: bucket.cat_file(name) for name in bucket.find("/")}
    operations = 0
    while True:
        bucket.store.clear()
        for name, data in before.items():
            bucket.pipe_file(name, data)
        mirror, finished = attached(run), tmp_path / f"run-{operations}"
        shutil.copytree(run, finished)
        mirror.folder = finished
        write_checkpoint(finished, END)
        for name in (FIRST, SECOND):
            remove_checkpoint(finished, name)
        with pytest.MonkeyPatch.context() as patch:
            cut_after(operations, patch)
            try:
                mirror.push()
                break
            except Cut:
                operations += 1
        found = whole_in_mirror(tmp_path)
        assert "start" in found
        assert SECOND in found or END in found, f"after {operations - 1} operations there is nothing to continue from"
    assert operations > 6
    assert whole_in_mirror(tmp_path) == {"start", END}


def test_a_damaged_checkpoint_is_left_aside(run: Path, tmp_path: Path, bucket, capsys) -> None:
    attached(run).push()
    bucket.pipe_file("/bucket/run/checkpoints/00-one/step-000004/state/array", b"other bytes")
    bucket.pipe_file("/bucket/run/checkpoints/00-one/step-000006.sha256.json", b'{"mani')
    bucket.pipe_file("/bucket/run/checkpoints/00-one/step-000008.sha256.json", b'{"../../../../away": "0"}')
    bucket.pipe_file("/bucket/run/checkpoints/00-one/step-000010.sha256.json", b'{"never came": "0"}')
    attached(tmp_path / "other")
    assert whole(tmp_path / "other") == {"start", FIRST}
    assert not list((tmp_path / "other").rglob("*.tmp"))
    assert capsys.readouterr().err.count("skipped, a file is missing or its checksum differs") == 2


def test_who_began_last_writes(run: Path, tmp_path: Path) -> None:
    first = attached(run)
    first.push()
    second = attached(tmp_path / "other")
    with pytest.raises(UserError, match=rf"{URL}: process \d+ on .* has attached to this mirror \("):
        first.push()
    second.push()


def test_a_mirror_of_another_recipe_is_refused(tmp_path: Path) -> None:
    for name, seed in (("one", 0), ("two", 1)):
        run = Run(recipe(tmp_path, mirror=URL, seed=seed, run_dir=str(tmp_path / name)), progress=False)
        if not seed:
            with run.run_folder.alone("train"):
                pass
            continue
        message = rf"{URL}: this mirror belongs to a run with another recipe; seed \(0 there, 1 asked\)"
        with pytest.raises(UserError, match=message):
            with run.run_folder.alone("train"):
                raise AssertionError
        assert not run.folder.exists(), "refused before anything is made"


def test_the_mirror_does_not_name_the_machine(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: "alices-laptop")
    first = attached(run)
    monkeypatch.setattr("socket.gethostname", lambda: "bobs-laptop")
    attached(run).push()
    assert b"laptop" not in b"".join(first.store.read(name) or b"" for name in first.store.names(""))
    monkeypatch.setattr("socket.gethostname", lambda: "alices-laptop")
    with pytest.raises(UserError, match="on another machine has attached") as caught:
        first.push()
    assert "laptop" not in str(caught.value)


def test_continued_from_the_mirror_alone_the_end_is_the_same(tmp_path: Path) -> None:
    """Stopped every other step and its machine taken away each time: the parameters of an undisturbed run."""
    stage = {"steps": 4, "batch_size": 16, "learning_rate": 1e-2}
    sizes = {"heads": {"fc1": {"dim": "teachers"}}, "stages": [{"stage": 1, **stage}, {"stage": 3, **stage}]}
    undisturbed = Run(recipe(tmp_path, run_dir=str(tmp_path / "undisturbed"), **sizes), progress=False)
    assert run_training(undisturbed)
    for machine in range(20):
        # The stores are shared, as on a mount; only the run folder goes with the machine.
        place = {"run_dir": str(tmp_path / f"machine-{machine}"), "stores": str(tmp_path / "undisturbed")}
        run = Run(recipe(tmp_path, mirror=URL, **place, **sizes), progress=False)
        steps = itertools.count(1)
        with run.run_folder.alone("train"):
            texts, view = fill(run)
            if train_stages(run, texts, view, lambda step: next(steps) >= 2):  # noqa: B023
                break
        shutil.rmtree(run.folder)
    assert machine == 3, "stopped at stage 1's second step, stage 3's first and third"
    expected = parameters(undisturbed, 1)
    for name, leaf in parameters(run, 1).items():
        np.testing.assert_array_equal(leaf, expected[name], err_msg=name)
    events = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    numbers = [(e["stage_index"], e["step"]) for e in events if e["event"] == "step"]
    assert numbers == [(stage, step) for stage in range(2) for step in range(1, 5)]


def test_results_of_all_data_sets_are_copied(tmp_path: Path) -> None:
    run = tmp_path / "run"
    mirror = attached(run)
    (run / "evaluations").mkdir(parents=True)
    for name in ("mine.json", "reddit.json", "reddit.png"):
        (run / "evaluations" / name).write_text(name)
    mirror.push()
    store = Store(URL)
    assert set(store.names("evaluations")) == {"mine.json", "reddit.json", "reddit.png"}
    assert store.read("evaluations/mine.json") == b"mine.json"


def test_a_mirror_on_a_shared_disk_leads_nowhere(run: Path, tmp_path: Path) -> None:
    """Whoever made it may write what the command writes: through a link, files of its user."""
    shared, victim = tmp_path / "shared", tmp_path / "victim"
    shared.mkdir()
    victim.mkdir()
    (victim / "a").write_text("precious")
    (shared / "owner.json").symlink_to(victim / "a")
    (shared / "checkpoints").symlink_to(victim)
    store = Store(f"file://{shared}")
    for use in (
        Mirror(f"file://{shared}", run).attach,
        lambda: store.write("owner.json", b""),
        lambda: store.read("owner.json"),
        lambda: store.names("checkpoints"),
        lambda: store.send(run, ["metrics.jsonl"], "checkpoints"),
        lambda: store.fetch("checkpoints", ["a"], tmp_path / "fetched"),
        lambda: store.remove("checkpoints/a"),
        lambda: store.remove_below("checkpoints"),
    ):
        with pytest.raises(UserError, match=r"is a link out of file://"):
            use()
    assert [path.read_text() for path in victim.iterdir()] == ["precious"]


def test_a_shared_disk_may_be_reached_by_a_link(run: Path, tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "shared").symlink_to("disk")
    mirror = Mirror(f"file://{tmp_path / 'shared'}", run)
    mirror.attach()
    mirror.push()
    assert (tmp_path / "disk" / "owner.json").is_file()
