"""A small campaign of damage (tests/campaigns/damage.py is the large one): nothing is read wrongly without a word."""

from __future__ import annotations

import os
import random
import time

import h5py
import numpy as np
import pytest
from campaigns import damage, mutations

from hpctrack.errors import InputError
from hpctrack.storage import journals, products, store
from hpctrack.storage.candidates import CANDIDATES
from hpctrack.training import checkpoint


def test_sixty_damaged_inputs(tmp_path):
    campaign = damage.run(60, seed=11, root=tmp_path)
    assert campaign.failures == []
    assert sum(campaign.counts.values()) == 60
    found = sum(count for (_, _, outcome), count in campaign.counts.items() if outcome.startswith("found"))
    assert found >= 35  # most of it is not padding


def test_the_campaign_sees_what_it_must_not_miss(tmp_path):
    campaign = damage.Campaign(tmp_path)
    assert campaign.case("dataset", "none", lambda folder: None, "") == "no meaning changed"

    def forge(folder):
        """Other particles under fitting checksums: a swap of all files with those of another dataset."""
        for path in folder.iterdir():
            path.write_bytes((tmp_path / "twin/dataset" / path.name).read_bytes())

    assert campaign.case("dataset", "forged", forge, "") == "silent wrong read"
    campaign.truth["dataset"] = None
    assert campaign.case("dataset", "none", lambda folder: None, "") == "silent wrong read"
    assert damage.in_child(lambda: os.kill(os.getpid(), 11))[0] == "crash"
    assert damage.in_child(lambda: os._exit(3)) == ("crash", "exit code 3")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(damage, "SECONDS", 0.2)
        assert damage.in_child(lambda: time.sleep(20))[0] == "hang"
    state, seen = damage.in_child(lambda: damage.attempt(lambda: np.zeros(1 << 40)))
    assert state == "done" and "MemoryError" in seen["stray"]


@pytest.mark.parametrize("kind", sorted(mutations.BYTES))
def test_blind_damage_changes_the_bytes(kind):
    data = bytes(random.Random(1).randbytes(999))
    changed = [mutations.BYTES[kind](bytearray(data), random.Random(seed)) for seed in range(20)]
    assert sum(one != data for one in changed) >= 15


# ------------------------------------------------------------------------ what the campaign has found, once and for all


@pytest.fixture
def good(tmp_path):
    damage.make(tmp_path, 1)
    return tmp_path


def test_a_flipped_weight_of_a_checkpoint_is_refused(good):
    path = good / "checkpoint/step-00000006/state.pt"
    content = bytearray(path.read_bytes())
    content[content.find(b"/data/0") + 200] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"state\.pt: .*fails its checksum"):
        checkpoint.read_state(path.parent)


def test_latest_that_is_no_text_is_refused(good):
    (good / "checkpoint/latest").write_bytes(b"\xff\xfe\x80")
    with pytest.raises(InputError, match="latest: names "):
        checkpoint.latest(good / "checkpoint")


@pytest.mark.parametrize("content", [b"\xff", b"[]", b'{"step": 1}', b"7"])
def test_meta_data_of_another_kind_are_refused(good, content):
    folder = good / "checkpoint/step-00000006"
    (folder / "meta.json").write_bytes(content)
    with pytest.raises(InputError, match=r"meta\.json: "):
        checkpoint.read_meta(folder)


def test_a_record_under_another_event_id_is_none(good):
    (path,) = (good / "journal").rglob("*.journal")
    content = bytearray(path.read_bytes())
    content[8] ^= 1  # of the first record's event id
    path.write_bytes(content)
    assert list(journals.records(path)) == []


@pytest.mark.parametrize("length", [2**62, 2**40, -1, 0])
def test_a_record_of_a_lying_length_ends_the_journal(good, length):
    (path,) = (good / "journal").rglob("*.journal")
    content = bytearray(path.read_bytes())
    content[16:24] = length.to_bytes(8, "little", signed=True)
    path.write_bytes(content)
    assert list(journals.records(path)) == []


@pytest.mark.parametrize("name", ["event_id", "scores", "offsets/hits"])
def test_a_lying_size_is_refused_before_it_is_believed(good, name):
    path = good / "candidates/candidates-00000.h5"
    with h5py.File(path, "r+") as file:
        del file[name]
        file.create_dataset(name, shape=(2**40,), dtype="i8", chunks=(1024,))
    with CANDIDATES.open_file(path) as file, pytest.raises(InputError, match="more than the file has"):
        products.content_digest(file, CANDIDATES.advice)
    index = good / "dataset/index.h5"
    with h5py.File(index, "r+") as file:
        del file["row"]
        file.create_dataset("row", shape=(2**36,), dtype="i8", chunks=(1024,))
    with pytest.raises(InputError, match=r"index\.h5: "):
        store.Dataset(good / "dataset")
