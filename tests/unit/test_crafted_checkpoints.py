"""Checkpoints that another program wrote: every verb ends in one line with exit code 2, in little memory."""

from __future__ import annotations

import copy
import importlib
import io
import itertools
import json
import pickle
import resource
import shutil
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from hpctrack.errors import InputError
from hpctrack.resources.cost_model import CostModel
from hpctrack.resources.peak_memory import PeakFit
from hpctrack.training import checkpoint, checkpoint_metadata

FIXTURES = Path(__file__).parents[1] / "fixtures" / "v0_1_0"
STEP = Path("checkpoints/step-00000002")
MIB = 2**20
TURN = itertools.count()


def test_fits_have_the_terms_that_meta_data_are_asked_for():
    assert (checkpoint_metadata.CostState.terms, checkpoint_metadata.PeakState.terms) == (
        len(CostModel.terms),
        len(PeakFit.terms),
    )


@pytest.fixture
def run(tmp_path, monkeypatch) -> Path:
    """A run of two of four steps; its recipe is influencer.yaml in the working folder, `influencer-done` has ended."""
    shutil.copytree(FIXTURES, tmp_path / "older")
    monkeypatch.chdir(tmp_path / "older")
    return tmp_path / "older" / "influencer"


def verb(capsys, *words: str) -> tuple[int, list[str]]:
    """Exit code and the lines on stderr."""
    capsys.readouterr()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        code = importlib.import_module(f"hpctrack.{words[0]}").main(list(words[1:]))
    return code, capsys.readouterr().err.strip().splitlines()


def calls(tmp: Path) -> list[list[str]]:
    """Every use of the checkpoint of `influencer`."""
    return [
        ["train", "influencer.yaml"],
        ["infer", "--checkpoint", "influencer", "--data", "data", "--out", str(tmp / "out"), "builder.radius=0.5"],
        ["train", "influencer.yaml", "run=new", "train.start_from=influencer", "train.steps=1"],
        ["export", "influencer", str(tmp / "given")],
        ["inspect", "--verify", "influencer"],
        ["inspect", "--verify", f"influencer/{STEP}"],
    ]


def all_refuse(capsys, run: Path, *, words: list[list[str]]) -> None:
    """Each call ends with 2 and one line that is short and names a file or a key of the checkpoint.

    Of several calls the next one in turn: what makes forms differ is found before verbs do.
    """
    words = [words[next(TURN) % len(words)]]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for call in words:
        shutil.rmtree(run.parent / "new", ignore_errors=True)
        code, lines = verb(capsys, *call)
        assert code == 2 and len(lines) == 1 and len(lines[0]) < 1000, (call, code, lines)
        assert lines[0].startswith(f"hpctrack {call[0]}: error: ") and "influencer" in lines[0], lines
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert grown < 400, f"{grown:.0f} MiB more memory"


# ------------------------------------------------------------------------------------------------ meta.json


def meta_forms() -> dict[str, str]:
    """Texts of meta.json by what is wrong with them."""
    good = json.loads((FIXTURES / "influencer" / STEP / "meta.json").read_text())
    forms = {
        "empty": "", "a list": "[]", "a number": "1", "null": "null", "text": '"step"', "cut": json.dumps(good)[:-9],
        "deep": "[" * 100_000, "deep and closed": "[" * 900 + "]" * 900, "not json": "step: 2",
        "large": '{"step": ' + " " * (1 << 26) + "2}", "long number": '{"step": ' + "9" * 5000 + "}",
        "nan": json.dumps(good | {"step": float("nan")}), "bytes": "\udcff",
    }  # fmt: skip
    deep: object = 1
    for _ in range(200):
        deep = {"model": deep}
    for key in good:
        if key not in ("pending", "hpctrack"):
            forms[f"no {key}"] = json.dumps({k: v for k, v in good.items() if k != key})
        for name, wrong in {"null": None, "text": "x", "list": [[1, "a"]], "deep": deep, "true": True}.items():
            if wrong != good[key] and not (key in ("hpctrack", "data") and name == "text") and key != "pending":
                forms[f"{key} {name}"] = json.dumps(good | {key: wrong})
    forms["pending text"] = json.dumps(good | {"pending": "no"})
    for number in (-1, 1.5, 10**30, 1e400, "2"):
        forms[f"step {number}"] = json.dumps(good | {"step": number})
    forms["hpctrack of a number"] = json.dumps(good | {"hpctrack": 1})
    forms["schema 0"], forms["schema x"] = json.dumps(good | {"schema": 0}), json.dumps(good | {"schema": "x"})
    forms["neutral"] = json.dumps(good | {"neutral": [1]})
    for path, wrong in {
        "plan.step": -1, "plan.epoch": "0", "plan.hash": 5, "plan.sizes": "x", "cost.samples": [[1, 2]],
        "cost.coefficients": [1.0], "cost.error": None, "memory.fits": [], "memory.ceiling": -1,
        "precision.loss_scale": 0, "precision.good_steps": 1.5, "tuned.radius": [1], "window.loss": "x",
        "config.run": 5, "config.seed": 2**64, "config.model": [], "config.model.name": "none",
        "config.model.backbone": {"width": 1}, "config.model.backbone.width": "x", "config.optim.lr": 1e400,
        "config.train.steps": 10**12, "config.data.features": ["none"], "config.unknown": 1, "config.data.graph": 5,
        "config.builder.unknown": 1, "config.loss.name": 3, "config.data.curriculum": [1],
    }.items():  # fmt: skip
        form = copy.deepcopy(good)
        *sections, last = path.split(".")
        section = form
        for name in sections:
            section = section[name]
        section[last] = wrong
        forms[f"{path} {wrong}"[:60]] = json.dumps(form)
    return forms


FORMS = meta_forms()


@pytest.mark.parametrize("form", FORMS)
def test_meta_data_of_every_malformed_kind_is_one_line(run, form, capsys, tmp_path):
    (run / STEP / "meta.json").write_bytes(FORMS[form].encode(errors="surrogateescape"))
    words = calls(tmp_path)
    if form.removeprefix("no ").startswith(("plan", "cost", "memory", "precision")):
        words = words[:1]  # what only a run needs that goes on
    elif form.startswith(("config.model", "config.builder")):
        words = [call for call in words if call[0] == "infer" or call[1] != "influencer.yaml" or len(call) == 2]
    all_refuse(capsys, run, words=words)


# ------------------------------------------------------------------------------------------------ state.pt


def good_state() -> dict:
    return torch.load(FIXTURES / "influencer" / STEP / "state.pt", weights_only=True)


def first(state: dict) -> str:
    return next(iter(state["model"]))


def with_weights(value) -> dict:
    state = good_state()
    name = first(state)
    state["model"][name] = value(state["model"][name]) if callable(value) else value
    return state


def with_optimizer(change) -> dict:
    state = good_state()
    change(state["optimizer"])
    return state


def entry(key: str, value) -> dict:
    return with_optimizer(lambda of: of["state"][0].update({key: value}))


def group(key: str, value) -> dict:
    return with_optimizer(lambda of: of["param_groups"][0].update({key: value}))


def views(base: torch.Tensor) -> dict:
    return {"model": {str(k): base[k:] for k in range(99)}}


def doubled(times: int) -> list:
    value: list = [1]
    for _ in range(times):
        value = [value, value]
    return value


MODEL_FORMS = {
    "a list": lambda: [1],
    "a tensor": lambda: torch.zeros(3),
    "empty": dict,
    "no model": lambda: {"optimizer": good_state()["optimizer"]},
    "model a list": lambda: {"model": [torch.zeros(2)]},
    "model empty": lambda: {"model": {}},
    "model of numbers": lambda: {"model": {"a": 1}},
    "model of numbered tensors": lambda: {"model": {1: torch.zeros(2)}},
    "more beside": lambda: good_state() | {"more": 1},
    "a name missing": lambda: {"model": dict(list(good_state()["model"].items())[1:])},
    "a name more": lambda: {"model": good_state()["model"] | {"more": torch.zeros(2)}},
    "another shape": lambda: with_weights(torch.zeros(2, 3)),
    "no dimension": lambda: with_weights(torch.tensor(1.0)),
    "nan": lambda: with_weights(lambda w: w * float("nan")),
    "inf": lambda: with_weights(lambda w: w + float("inf")),
    "whole numbers": lambda: with_weights(lambda w: w.long()),
    "truth values": lambda: with_weights(lambda w: w > 0),
    "complex": lambda: with_weights(lambda w: w.to(torch.complex64)),
    "sparse": lambda: with_weights(lambda w: w.to_sparse()),
    "sparse and large": lambda: with_weights(torch.sparse_coo_tensor(torch.zeros(2, 0).long(), [], (10**9, 10**9))),
    "on meta": lambda: with_weights(lambda w: w.to("meta")),
    "quantized": lambda: with_weights(lambda w: torch.quantize_per_tensor(w, 0.1, 0, torch.qint8)),
    "float8": lambda: with_weights(lambda w: w.to(torch.float8_e4m3fn)),
    "a parameter": lambda: with_weights(torch.nn.Parameter),
    "wants gradients": lambda: with_weights(lambda w: w.clone().requires_grad_()),
    "strides of 0": lambda: with_weights(torch.zeros(1).expand(10**5, 10**5)),
    "strides of 0, the right shape": lambda: with_weights(lambda w: torch.zeros(1).expand(w.shape)),
    "views of one part": lambda: views(torch.zeros(4096)),
    "doubled": lambda: {"model": {"a": doubled(60)}},
    "bytes": lambda: {"model": b"x" * 9},
    "a bytearray": lambda: {"model": bytearray(9)},
    "a set": lambda: {"model": {1, 2}},
    "numpy": lambda: {"model": {"a": np.zeros(3)}},
    "code": lambda: {"model": Path("x")},
}  # fmt: skip
OPTIMIZER_FORMS = {
    "no optimizer": lambda: {"model": good_state()["model"]},
    "optimizer a list": lambda: good_state() | {"optimizer": []},
    "no state": lambda: with_optimizer(lambda of: of.pop("state")),
    "no groups": lambda: with_optimizer(lambda of: of.pop("param_groups")),
    "more in it": lambda: with_optimizer(lambda of: of.update(more=1)),
    "groups empty": lambda: with_optimizer(lambda of: of.update(param_groups=[])),
    "groups of numbers": lambda: with_optimizer(lambda of: of.update(param_groups=[1, 2])),
    "one group": lambda: with_optimizer(lambda of: of["param_groups"].pop()),
    "params missing": lambda: with_optimizer(lambda of: of["param_groups"][0].pop("params")),
    "params text": lambda: group("params", "x"),
    "params doubled": lambda: group("params", [0, 0, 0]),
    "params a tensor": lambda: group("params", torch.zeros(3)),
    "a group of groups": lambda: group("betas", [[0.9], 0.9]),
    "a negative count": lambda: group("step", -1),
    "nan step": lambda: entry("step", torch.tensor(float("nan"))),
    "inf step": lambda: entry("step", torch.tensor(float("inf"))),
    "negative step": lambda: entry("step", torch.tensor(-5.0)),
    "step a vector": lambda: entry("step", torch.ones(3)),
    "step text": lambda: entry("step", "3"),
    "step none": lambda: entry("step", None),
    "nan moment": lambda: entry("exp_avg", good_state()["optimizer"]["state"][0]["exp_avg"] * float("nan")),
    "moment of another shape": lambda: entry("exp_avg", torch.zeros(3)),
    "moment a number": lambda: entry("exp_avg", 1.0),
    "moment missing": lambda: with_optimizer(lambda of: of["state"][0].pop("exp_avg_sq")),
    "moment too many": lambda: entry("more", torch.zeros(3)),
    "a parameter too many": lambda: with_optimizer(lambda of: of["state"].update({999: of["state"][0]})),
    "a parameter below 0": lambda: with_optimizer(lambda of: of["state"].update({-1: of["state"][0]})),
    "a parameter by name": lambda: with_optimizer(lambda of: of["state"].update(x=of["state"][0])),
    "a state of numbers": lambda: with_optimizer(lambda of: of["state"].update({0: 1})),
}


@pytest.mark.parametrize("form", MODEL_FORMS)
def test_weights_of_every_malformed_kind_are_one_line(run, form, capsys, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.save(MODEL_FORMS[form](), run / STEP / "state.pt")
    words = [call for call in calls(tmp_path) if call[0] != "export"]  # of a run that has not ended
    if form in ("a name missing", "model empty"):
        words = words[:2]  # a new run may begin from a smaller model
    elif form in ("nan", "inf", "whole numbers", "truth values", "another shape", "no dimension", "a name more"):
        words = words[:3]  # of another model, or not finite, is what no file says by itself
    all_refuse(capsys, run, words=words)


@pytest.mark.parametrize("form", OPTIMIZER_FORMS)
def test_optimizers_of_every_malformed_kind_are_one_line(run, form, capsys):
    torch.save(OPTIMIZER_FORMS[form](), run / STEP / "state.pt")
    all_refuse(capsys, run, words=[["train", "influencer.yaml"]])


# ------------------------------------------------------------------------------------------------ the archive


def archive(parts: dict[str, bytes], how: int = zipfile.ZIP_STORED) -> bytes:
    file = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(file, "w", how) as made:
        warnings.simplefilter("ignore")
        for name, content in parts.items():
            made.writestr(name, content)
    return file.getvalue()


def good_parts() -> dict[str, bytes]:
    with zipfile.ZipFile(FIXTURES / "influencer" / STEP / "state.pt") as found:
        return {name: found.read(name) for name in found.namelist()}


def with_pickle(content: bytes) -> bytes:
    return archive(good_parts() | {"archive/data.pkl": content})


def tensor_pickle(offset: int, size: tuple, stride: tuple, numbers: int = 32) -> bytes:
    """A state whose one tensor is described so, in a storage that claims so many numbers."""

    class Pickler(pickle.Pickler):
        def persistent_id(self, value):
            return ("storage", torch.FloatStorage, "0", "cpu", numbers) if value == "STORAGE" else None

    class Rebuilt:
        def __reduce__(self):
            rebuild = torch._utils._rebuild_tensor_v2
            return rebuild, ("STORAGE", offset, size, stride, False, __import__("collections").OrderedDict())

    file = io.BytesIO()
    Pickler(file, 2).dump({"model": {"a": Rebuilt()}})
    return file.getvalue()


def bomb() -> bytes:
    """bytearray(2^36)."""
    return b"\x80\x02c__builtin__\nbytearray\n\x8a\x05\x00\x00\x00\x00\x10\x85R."


ARCHIVES = {
    "empty": lambda: b"",
    "text": lambda: b"no archive",
    "a pickle": lambda: pickle.dumps({"model": {}}),
    "no part": lambda: archive({}),
    "no description": lambda: archive({"archive/data/0": b"1"}),
    "cut": lambda: archive(good_parts())[:-30],
    "parts that are packed": lambda: archive(good_parts(), zipfile.ZIP_DEFLATED),
    "a packed bomb": lambda: archive(good_parts() | {"archive/data/0": bytes(50 * MIB)}, zipfile.ZIP_DEFLATED),
    "a part missing": lambda: archive({k: v for k, v in good_parts().items() if k != "archive/data/0"}),
    "a part cut": lambda: archive(good_parts() | {"archive/data/0": b"1234"}),
    "description empty": lambda: with_pickle(b""),
    "description cut": lambda: with_pickle(good_parts()["archive/data.pkl"][:-100]),
    "description of noise": lambda: with_pickle(bytes(range(256))),
    "a bytearray of 64 GiB": lambda: with_pickle(bomb()),
    "a memo of 2^31 entries": lambda: with_pickle(b"\x80\x02}r\xff\xff\xff\x7f."),
    "text of 4 GiB": lambda: with_pickle(b"\x80\x02X\xff\xff\xff\xff."),
    "a call of the system": lambda: with_pickle(b"\x80\x02cposix\nsystem\nX\x04\x00\x00\x00true\x85R."),
    "a tensor that is changed": lambda: with_pickle(
        tensor_pickle(0, (4,), (1,))[:-3] + b"N\x85b" + tensor_pickle(0, (4,), (1,))[-3:]
    ),
    "a state that is set": lambda: with_pickle(b"\x80\x02ccollections\nOrderedDict\n)R}b."),
    "lists without end": lambda: with_pickle(b"\x80\x02" + b"]" * 5_001 + b"a" * 5_000 + b"."),
    "a section whose functions are others": lambda: with_pickle(
        b"\x80\x02}X\x05\x00\x00\x00modelccollections\nOrderedDict\n)R}X\x05\x00\x00\x00itemsK\x01sbs."
    ),
    "a list in itself": lambda: with_pickle(b"\x80\x02]q\x00h\x00a."),
    "a section in itself": lambda: with_pickle(b"\x80\x02}q\x00X\x05\x00\x00\x00modelh\x00s."),
    "a key that is none": lambda: with_pickle(b"\x80\x02}]]s."),
    "a reference that is none": lambda: with_pickle(b"\x80\x02NQ."),
    "strides of 0": lambda: with_pickle(tensor_pickle(0, (10**5, 10**5), (0, 0))),
    "sizes beyond the part": lambda: with_pickle(tensor_pickle(0, (10**10,), (1,))),
    "an offset beyond the part": lambda: with_pickle(tensor_pickle(10**9, (4,), (1,))),
    "a storage beyond the file": lambda: with_pickle(tensor_pickle(0, (10**10,), (1,), 10**10)),
    "sizes below 0": lambda: with_pickle(tensor_pickle(0, (-4,), (1,))),
    "strides below 0": lambda: with_pickle(tensor_pickle(3, (4,), (-1,))),
    "sizes and strides of other lengths": lambda: with_pickle(tensor_pickle(0, (2, 2), (1,))),
    "sizes of text": lambda: with_pickle(tensor_pickle(0, ("a",), (1,))),
    "sizes of 2^100": lambda: with_pickle(tensor_pickle(0, (2**100, 0), (1, 1))),
}


@pytest.mark.parametrize("form", ARCHIVES)
def test_archives_of_every_malformed_kind_are_one_line(run, form, capsys, tmp_path):
    (run / STEP / "state.pt").write_bytes(ARCHIVES[form]())
    words = [call for call in calls(tmp_path) if call[0] != "export"]
    all_refuse(capsys, run, words=words)


def test_every_damaged_byte_of_a_description_is_refused_or_harmless(run):
    """With its checksum made anew, so that only the content speaks."""
    good, path = good_parts()["archive/data.pkl"], run / STEP
    rng = np.random.default_rng(5)
    for place in rng.choice(len(good), 300, replace=False):
        damaged = bytearray(good)
        damaged[place] = int(rng.integers(256))
        (path / "state.pt").write_bytes(with_pickle(bytes(damaged)))
        try:
            state = checkpoint.read_state(path)
            assert sum(value.numel() for value in state["model"].values()) < 10_000
        except InputError as error:
            assert "\n" not in str(error) and len(str(error)) < 600


def test_what_torch_saves_is_read(run):
    """Kinds that a checkpoint may hold: views that share a part, no dimension, no number, every type of number."""
    state = good_state()
    shared = torch.arange(12.0).reshape(3, 4)
    kinds = [torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8]
    more = {str(kind): torch.ones(2).to(kind) for kind in [*kinds, torch.uint8, torch.bool]}
    state["model"] |= {
        "a": shared,
        "b": shared,
        "c": shared.T,
        "none": torch.zeros(0, 3),
        "one": torch.tensor(2.0),
        **more,
    }
    torch.save(state, run / STEP / "state.pt")
    read = checkpoint.read_state(run / STEP)["model"]
    assert all(torch.equal(read[name], value) for name, value in state["model"].items())
